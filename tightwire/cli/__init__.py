"""The command line: parse, call, print. One module per command; a new one is a line in `COMMANDS`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any

# Command: the module that holds its typer `app`. A module with one command gives that command.
COMMANDS = {
    "tour": "tightwire.cli.tour",
    "lab": "tightwire.cli.lab",
    "probe": "tightwire.cli.probe",
    "profile": "tightwire.cli.profile",
    "cluster": "tightwire.cli.cluster",
    "plan": "tightwire.cli.plan",
    "simulate": "tightwire.cli.simulate",
    "race": "tightwire.cli.race",
    "parallel": "tightwire.cli.parallel",
    "map": "tightwire.cli.map",
    "jobs": "tightwire.cli.jobs",
    "bench": "tightwire.cli.bench",
    "warm": "tightwire.cli.warm",
    "study": "tightwire.cli.study",
    "validate": "tightwire.cli.validate",
    "methods": "tightwire.cli.methods",
}
# Of a word in an error; longer ones are cut.
MOST_LETTERS = 400
ABOUT = """Make PyTorch training fast on the network you have.

    tightwire tour
        The main job on this machine: a slow network, stock DDP, the best plans.

    tightwire lab run --workers 4 --rate 200mbit -- python train.py
        Your own script on an emulated slow network.

    tightwire plan --gradients 100MB --compute 300ms --workers 8 --bandwidth 1gbit
        The best plan for a model and a cluster, and the reasons.

    tightwire methods
        Every method, its paper, and what goes with what.

    tightwire --import my_codec.py study compression --plans "halves+ef"
        Methods of your own, in any command.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; errors that Tightwire raises on purpose end it with one sentence and code 2.

    Args:
        arguments: behind `tightwire`; those of this process by default.
    """
    from tightwire.errors import TightwireError

    try:
        application().main(None if arguments is None else list(arguments), prog_name="tightwire")
    except TightwireError as error:
        # A value of thousands of digits is told by how it begins.
        said = re.sub(rf"\S{{{MOST_LETTERS},}}", lambda word: f"{word[0][:40]}…", str(error))
        print(f"tightwire: {said}", file=sys.stderr)
        sys.exit(2)


def application() -> Any:
    """Builds the group; a command's module is imported only when it is asked for."""
    import typer

    from tightwire.cli.app import App, CommandGroup, program

    class Lazy(CommandGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in COMMANDS:
                return None
            command = typer.main.get_command(importlib.import_module(COMMANDS[cmd_name]).app)
            command.name = cmd_name
            return command

    app = App(cls=Lazy, help=ABOUT, no_args_is_help=True, add_completion=True)
    app.callback()(program)
    return typer.main.get_command(app)
