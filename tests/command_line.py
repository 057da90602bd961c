"""Runs `tightwire` in this process, as a terminal would."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from tightwire.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: of its exit.
        stdout: what it printed.
        stderr: what it said.
    """

    code: int
    stdout: str
    stderr: str


def tightwire(*arguments: str) -> Ended:
    """Runs `tightwire ARGUMENTS`; an error that is not raised on purpose comes through."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main(arguments)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def refused(*arguments: str) -> str:
    """Runs a command that is asked for the impossible; returns the one sentence that it ends with."""
    ended = tightwire(*arguments)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.stderr
    return ended.stderr
