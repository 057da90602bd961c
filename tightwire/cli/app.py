"""What every command shares: help whose examples stand line by line, errors in one sentence, a bar while it works."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperCommand, TyperGroup

from tightwire.errors import TightwireError

JsonOption = Annotated[bool, typer.Option("--json", help="End with one line of JSON on standard output.")]

# An example begins so: its lines are commands, to be copied as they are.
PROGRAMS = ("tightwire ", "torchrun ", "tw.")


class App(typer.Typer):
    """A group of commands, or a single one, made alike for all of `tightwire`."""

    def __init__(self, **settings: Any) -> None:
        # Completion is installed once, by `tightwire` itself.
        super().__init__(**{"rich_markup_mode": None, "add_completion": False, "cls": Group} | settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Registers a function as a command."""
        return super().command(name, **{"cls": Command} | settings)


class Command(TyperCommand):
    """A command whose help keeps examples as they are written, and whose errors are one sentence and code 2."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Writes the docstring: prose is wrapped, examples are not."""
        write_help(self.help or "", formatter)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command.

        Raises:
            typer.Exit: code 2, after an error that Tightwire raised on purpose.
        """
        with one_sentence():
            return super().invoke(ctx)


class Group(TyperGroup):
    """A group whose help is written like a command's."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Writes the docstring: prose is wrapped, examples are not."""
        write_help(self.help or "", formatter)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns an error that Tightwire raises on purpose into a sentence on standard error and exit code 2.

    Raises:
        typer.Exit: code 2, instead of the error.
    """
    try:
        yield
    except TightwireError as error:
        print(f"tightwire: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


def write_help(text: str, formatter: Any) -> None:
    """Writes a docstring without its sections such as Args: prose wrapped to the formatter's width, examples as they are.

    Args:
        text: paragraphs; one that is indented, or begins with one of `PROGRAMS`, is an example.
        formatter: of the help page.
    """
    width = max(30, formatter.width - 4)
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.splitlines()
        if lines and (lines[0].startswith("    ") or lines[0].startswith(PROGRAMS)):
            written = textwrap.indent(textwrap.dedent(paragraph), "      ")
        else:
            written = textwrap.indent(textwrap.fill(" ".join(lines), width), "  ")
        formatter.write(f"\n{written}\n")


@contextmanager
def progress(total: int | None, first: str) -> Iterator[Callable[[str, int], None]]:
    """Shows on standard error how far a command is; yields what is told of progress: the text, and steps made.

    Args:
        total: steps in all; None where nobody knows.
        first: what is shown until the first step.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    known = columns if total is not None else (columns[0], columns[2], columns[3])
    with Progress(*known, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(first, total=total)
        yield lambda text, steps: bar.update(task, description=text, advance=steps)
