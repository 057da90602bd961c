"""The command line: parse, call, print. One module per command; a new one is a line in `COMMANDS`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any

# Each is the module `tightwire.cli.NAME`, which holds a typer `app`; a module with one command gives that command.
# What it does is told here, so that a list of commands imports none of them.
COMMANDS = {
    "tour": "See what Tightwire does: a real model on a slow network, under stock DDP and under the plans "
    "it chooses",
    "lab": "Emulate a cluster on this machine: one network namespace per worker, links shaped by the kernel",
    "probe": "Measure latency, bandwidth and collectives between workers; write them for `tightwire plan`",
    "profile": "Run a script for a few training steps, and measure forward, backward, gradients and codecs",
    "cluster": "Write cluster files: of known hardware, or from the files of other tools",
    "plan": "Choose the fastest plan for a model on a cluster, and say why; plain all-reduce or one worker "
    "may be right",
    "simulate": "Predict the step time of plans, and what bounds each of them",
    "race": "Try the planner's best few plans on a script of yours, on an emulated slow network",
    "parallel": "Cut a transformer over a cluster: data, tensor, sequence, context, pipeline and expert "
    "parallelism",
    "map": "Predict which method is best, over bandwidth, model intensity and workers",
    "jobs": "Predict what jobs do to each other on one network: each job's slowdown under every network "
    "policy",
    "bench": "Measure beside the stock alternative and the physical bound, in one run",
    "warm": "Compile the kernels of codecs and keep them on disk, so that no training run waits for that",
    "study": "Re-run an experiment from the literature here, and check what the literature says of it",
    "validate": "Hold the simulator to closed forms, published measurements and the lab, fitted and held-out "
    "points apart",
    "methods": "List every method: what it does, its paper, and what it may be combined with",
}
# Of a word in an error; longer ones are cut.
MOST_LETTERS = 400
ABOUT = """Make PyTorch training fast on the network you have.

    tightwire tour
        On this machine: a slow network, stock DDP, and the best plans.

    tightwire lab run --workers 4 --rate 200mbit -- python train.py
        Your own script on an emulated slow network.

    tightwire plan --gradients 100MB --compute 300ms --workers 8 \\
        --bandwidth 1gbit
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
            command = typer.main.get_command(importlib.import_module(f"tightwire.cli.{cmd_name}").app)
            command.name = cmd_name
            return command

        def sentences(self, ctx: Any) -> list[tuple[str, str]]:
            return [(name, f"{sentence}.") for name, sentence in COMMANDS.items()]

    app = App(cls=Lazy, help=ABOUT, no_args_is_help=True, add_completion=True)
    app.callback()(program)
    return typer.main.get_command(app)
