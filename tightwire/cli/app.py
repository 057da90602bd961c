"""What every command shares: help whose examples stand line by line, and a bar while it works."""

from __future__ import annotations

import inspect
import math
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperCommand, TyperGroup

from tightwire.cli.table import say
from tightwire.errors import TightwireError, UnitError
from tightwire.extensions import name_extensions
from tightwire.files import own_version

# In a pipe.
LINE_EVERY_S = 30.0
# An example begins so: its lines are commands, to be copied as they are.
PROGRAMS = ("tightwire ", "torchrun ", "tw.")


class App(typer.Typer):
    """A group of commands, or a single one, made alike for all of `tightwire`."""

    def __init__(self, **settings: Any) -> None:
        # Completion is installed once, by `tightwire` itself.
        super().__init__(
            **{"rich_markup_mode": None, "add_completion": False, "cls": CommandGroup} | settings
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Registers a function as a command."""
        return super().command(name, **{"cls": Command} | settings)


class Command(TyperCommand):
    """A command whose help keeps examples as they are written."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Writes the docstring: prose is wrapped, examples are not."""
        write_help(self.help or "", formatter)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; where it refuses what an option says, and names the value alone, the option is named too.

        Raises:
            UnitError: an option of a number that is none: a limit of `nan` seconds never comes.
            TightwireError: the command does.
        """
        for written, value in _given(self, ctx):
            if isinstance(value, float) and not math.isfinite(value):
                raise UnitError(f"{written} {value}: write a finite number.")
        try:
            return super().invoke(ctx)
        except TightwireError as error:
            said, given = str(error), [(option, str(value)) for option, value in _given(self, ctx)]
            if (option := option_refused(said, given)) is not None:
                error.args = (f"{option}: {said}",)
            raise


class CommandGroup(TyperGroup):
    """A group whose help is written like a command's, with the whole first sentence of each of its commands."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes each command with the first sentence of its help."""
        with formatter.section("Commands"):
            formatter.write_dl(self.sentences(ctx))

    def sentences(self, ctx: Any) -> list[tuple[str, str]]:
        """Returns each command that is shown, and the first sentence of its help."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        return [(name, first_sentence(c)) for name, c in commands if c is not None and not c.hidden]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Writes the docstring: prose is wrapped, examples are not."""
        write_help(self.help or "", formatter)


def _import(sources: list[str] | None) -> list[str] | None:
    name_extensions(sources or ())
    return sources


def _tell_version(asked: bool) -> None:
    if asked:
        say(f"tightwire {own_version()}")
        raise typer.Exit


def program(
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            help="A file or a module that registers methods of your own, imported here and in every worker; may be "
            "given several times.",
            metavar="FILE.py",
            is_eager=True,  # before the command is looked up, whose lists may hold what is imported
            callback=_import,
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Takes the options that stand before any command."""


def option_refused(said: str, given: Sequence[tuple[str, object]]) -> str | None:
    """Returns the option whose value a refusal begins with; None where it names options itself, or no such value.

    >>> option_refused("'x' is no known model; known: gpt2.", [("--model", "x")])
    '--model'
    >>> option_refused("--hardware x: write NAME:NODES.", [("--hardware", "x")])

    Args:
        said: the refusal.
        given: options and their values.
    """
    if any(option in said for option, _ in given):
        return None
    for option, value in given:
        if said.startswith((f"{value!r} ", f"{value} cannot", f"{value} is ", f"{value}: ")):
            return option
    return None


def _given(command: Any, ctx: Any) -> list[tuple[str, object]]:
    """Returns the options that a user wrote, with each of their values."""
    return [
        (parameter.opts[0], value)
        for parameter in command.params
        if (source := ctx.get_parameter_source(parameter.name)) is not None
        and source.name == "COMMANDLINE"
        and parameter.param_type_name == "option"
        and (told := ctx.params.get(parameter.name)) is not None
        for value in (told if isinstance(told, list | tuple) else [told])
    ]


def first_sentence(command: Any) -> str:
    """Returns what a command's help begins with."""
    text = command.short_help or inspect.cleandoc(command.help or "").partition("\n\n")[0]
    sentence, dot, _ = " ".join(text.split()).partition(". ")
    return str(sentence + dot.strip())


def write_help(text: str, formatter: Any) -> None:
    """Writes a docstring: prose wrapped to the formatter's width, examples as they are.

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
            written = textwrap.indent(textwrap.fill(" ".join(lines), width, break_on_hyphens=False), "  ")
        formatter.write(f"\n{written}\n")


@contextmanager
def progress(total: int | None, first: str) -> Iterator[Callable[[str, int], None]]:
    """Shows on standard error how far a command is; yields what is told of progress: the text, and steps made.

    In a pipe a line is written every half a minute, for who reads a log.

    Args:
        total: steps in all; None where nobody knows.
        first: what is shown until the first step.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    known = columns if total is not None else (columns[0], columns[2], columns[3])
    console = Console(stderr=True)
    # In a pipe a bar would be a blank line.
    with Progress(*known, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(first, total=total)
        made, began_s, told_s = 0, time.monotonic(), time.monotonic()

        def tell(text: str, steps: int) -> None:
            nonlocal made, told_s
            made += steps
            bar.update(task, description=text, advance=steps)
            if not bar.console.is_terminal and time.monotonic() - told_s > LINE_EVERY_S:
                told_s = time.monotonic()
                of = "" if total is None else f" of {total}"
                say(f"{made}{of} after {told_s - began_s:.0f} s; {text}", err=True)

        yield tell
