"""The command line: parse, call, print. One module per command; a new one is a line in `COMMANDS`."""

from __future__ import annotations

import importlib
import sys
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
    "parallel": "tightwire.cli.parallel",
    "bench": "tightwire.cli.bench",
    "study": "tightwire.cli.study",
    "validate": "tightwire.cli.validate",
    "methods": "tightwire.cli.methods",
}
ABOUT = """Makes PyTorch training fast on the network you have.

    tightwire tour                                                 the main job, on this machine
    tightwire lab run --workers 4 --rate 200mbit -- python train.py    your script on a slow network
    tightwire methods                                              what there is, and what goes with what
"""


def main() -> None:
    """Runs the command line; errors that Tightwire raises on purpose end it with one sentence and code 2."""
    from tightwire.errors import TightwireError

    try:
        _build()(prog_name="tightwire")
    except TightwireError as error:
        print(f"tightwire: {error}", file=sys.stderr)
        sys.exit(2)


def _build() -> Any:
    """Builds the group; a command's module is imported only when it is asked for."""
    import typer
    from typer.core import TyperGroup

    class Lazy(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in COMMANDS:
                return None
            command = typer.main.get_command(importlib.import_module(COMMANDS[cmd_name]).app)
            command.name = cmd_name
            return command

    app = typer.Typer(cls=Lazy, help=ABOUT, rich_markup_mode=None, no_args_is_help=True, add_completion=False)
    app.callback()(lambda: None)
    return typer.main.get_command(app)
