"""Tables that can be read at any width: numbers are never cut, long texts stand on a line of their own.

A table is laid out in the first of three ways that fits: a line per row; the first column on a line of its own and the
rest indented under it; the first column, then `name value` pairs, as many to a line as there is room for. Into a pipe
goes a line per row, whatever its length, so that `grep`, `sort` and `awk` can work on it.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import typer

GAP = "  "
INDENT = "    "


def print_rows(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: int = 1,
    caption: str = "",
    err: bool = False,
) -> None:
    """Prints a table.

    Args:
        head: the columns' names.
        rows: cells, as many as there are columns.
        texts: how many of the first columns hold text; the others hold numbers and stand to the right.
        caption: a sentence below the table.
        err: whether it goes to standard error.
    """
    width = width_of(sys.stderr if err else sys.stdout)
    for line in lay_out(head, rows, texts=texts, width=width):
        typer.echo(line, err=err)
    if caption:
        typer.echo("\n".join(wrapped(caption, width)), err=err)


def say(*sentences: str, err: bool = False) -> None:
    """Prints sentences, each wrapped to the terminal's width, in a pipe a line each; an empty one is a blank line."""
    width = width_of(sys.stderr if err else sys.stdout)
    for sentence in sentences:
        for line in wrapped(sentence, width) or [""]:
            typer.echo(line, err=err)


def say_json(told: Mapping[str, Any]) -> None:
    """Writes an answer for programs, on one line: null is what is infinite or no number, which JSON cannot hold."""
    typer.echo(json.dumps(_finite(told), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def width_of(stream: IO[str]) -> int | None:
    """Returns how many columns of text there is room for; None for a pipe or a file, which have no end.

    `COLUMNS` in the environment is obeyed everywhere.
    """
    import os

    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    is_terminal = stream.isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def lay_out(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1, width: int | None = None
) -> Iterator[str]:
    """Yields a table's lines.

    Args:
        head: the columns' names.
        rows: cells, as many as there are columns.
        texts: how many of the first columns hold text.
        width: that no line is to exceed; None: there is no limit. A cell is never cut: a first column that is wider
            than this is folded.

    >>> table = (("plan", "step", "sent"), [("bsp", "1.5 s", "29 MB"), ("bsp/allreduce/int8+ef", "0.4 s", "7.4 MB")])
    >>> print(*lay_out(*table), sep="\\n")
    plan                    step    sent
    ---------------------  -----  ------
    bsp                    1.5 s   29 MB
    bsp/allreduce/int8+ef  0.4 s  7.4 MB
    >>> print(*lay_out(*table, width=30), sep="\\n")
    plan
         step    sent
    -----------------
    bsp
        1.5 s   29 MB
    bsp/allreduce/int8+ef
        0.4 s  7.4 MB
    >>> print(*lay_out(*table, width=15), sep="\\n")
    bsp
        step 1.5 s
        sent 29 MB
    bsp/allreduce/i
        nt8+ef
        step 0.4 s
        sent 7.4 MB
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        yield _line(head, widths, texts)
        yield GAP.join("-" * w for w in widths)
        yield from (_line(row, widths, texts) for row in rows)
        return
    rest = widths[1:]
    if len(INDENT) + sum(rest) + len(GAP) * (len(rest) - 1) <= width:
        yield head[0]
        yield INDENT + _line(head[1:], rest, texts - 1)
        yield "-" * (len(INDENT) + sum(rest) + len(GAP) * (len(rest) - 1))
        for row in rows:
            yield from _folded(row[0], width)
            yield INDENT + _line(row[1:], rest, texts - 1)
        return
    for row in rows:
        yield from _folded(row[0], width)
        pairs = [f"{name} {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell]
        yield from _packed(pairs, width)


def _line(cells: Sequence[str], widths: Sequence[int], texts: int) -> str:
    padded = (
        cell.ljust(w) if i < texts else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    )
    return GAP.join(padded).rstrip()


def _folded(text: str, width: int) -> Iterator[str]:
    """Yields a text that may be longer than a line, later lines indented."""
    yield text[:width]
    for start in range(width, len(text), width - len(INDENT)):
        yield INDENT + text[start : start + width - len(INDENT)]


def _packed(pairs: Sequence[str], width: int) -> Iterator[str]:
    """Yields as many pairs to a line as there is room for."""
    line = ""
    for pair in pairs:
        longer = f"{line}{GAP * 2}{pair}" if line else pair
        if line and len(INDENT) + len(longer) > width:
            yield from _folded(INDENT + line, width)
            longer = pair
        line = longer
    if line:
        yield from _folded(INDENT + line, width)


def entries(rows: Sequence[tuple[str, Sequence[str]]], width: int | None, column: int = 20) -> Iterator[str]:
    """Yields a list of names with what is said of each, wrapped beside them.

    >>> print(*entries([("bsp", ["agree every step", "CACM 1990"])], width=None, column=6), sep="\\n")
      bsp   agree every step
            CACM 1990

    Args:
        rows: names, and paragraphs.
        width: that no line is to exceed; None: there is no limit.
        column: where the paragraphs begin; a name that is longer stands alone.
    """
    room = None if width is None else max(20, width - column - 2)
    for name, paragraphs in rows:
        lines = [
            line
            for paragraph in paragraphs
            for line in (
                [paragraph] if room is None else textwrap.wrap(paragraph, room, break_on_hyphens=False)
            )
        ]
        if len(name) + 1 > column:
            yield f"  {name}"
            name = ""
        for line in lines or [""]:
            yield f"  {name:<{column}}{line}".rstrip()
            name = ""


def wrapped(text: str, width: int | None) -> list[str]:
    """Returns a paragraph's lines; one line where there is no limit."""
    return [text] if width is None else textwrap.wrap(text, width, break_on_hyphens=False)
