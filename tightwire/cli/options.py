"""Options that several commands have, spelled and explained once."""

from __future__ import annotations

from typing import Annotated

import typer

from tightwire.errors import LabError
from tightwire.lab import parse_rate

JsonOption = Annotated[bool, typer.Option("--json", help="End with one line of JSON on standard output.")]
HostsOption = Annotated[int, typer.Option(help="Number of workers in the emulated cluster.", min=2)]
RateOption = Annotated[
    str, typer.Option(help="Rate of each worker's link, in each direction: 1gbit, 200mbit or 25MB/s.")
]


def shaped_rate(text: str) -> float:
    """Reads a link's rate where a command is nothing without one.

    Raises:
        LabError: the rate is `none`, or cannot be read.
    """
    rate_bytes_per_s = parse_rate(text)
    if rate_bytes_per_s is None:
        raise LabError("--rate none: this command compares times on a link with a rate. Write --rate 1gbit.")
    return rate_bytes_per_s
