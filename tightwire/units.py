"""Units: the one place where sizes, rates and times are read and printed.

Sizes are in bytes, rates in bytes per second, times in seconds. What is printed here is read here again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

from tightwire.errors import UnitError

T = TypeVar("T")

BYTE_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
SECONDS = {
    "s": "1",
    "ms": "1e-3",
    "us": "1e-6",
    "µs": "1e-6",
    "μs": "1e-6",
    "ns": "1e-9",
    "min": "60",
    "h": "3600",
}
RATE_EXAMPLES = "1gbit, 400Gb/s or 25MB/s"

# With groups of three digits, as print_ms writes them, or without.
_NUMBER = r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_SIGNED = r"([+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]*\.?[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_SPELLINGS = {"byte": "B", "bytes": "B", "kB": "KB"}
_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Reads `4194304`, `4MiB`, `25MB` or `1.5GB` as a number of bytes.

    >>> parse_bytes("4MiB"), parse_bytes("1.5GB"), parse_bytes("25 kB")
    (4194304, 1500000000, 25000)

    Raises:
        UnitError: not a whole number of bytes, or an unknown unit.
    """
    match = re.fullmatch(_NUMBER + r" ?([A-Za-z]*)", text.strip())
    unit = _SPELLINGS.get(match[2], match[2]) if match else ""
    if match and unit in BYTE_UNITS:
        size = Decimal(match[1].replace(",", "")) * BYTE_UNITS[unit]
        if size == int(size):
            return int(size)
    known = ", ".join(u for u in BYTE_UNITS if u)
    raise UnitError(f"{text!r} is no size; write a number and one of {known}, as in 25MB: whole bytes")


def parse_rate(text: str) -> float:
    """Reads a rate in bits (`1gbit` as `tc` has it, `400Gb/s`) or in bytes (`25MB/s`).

    >>> parse_rate("200mbit"), parse_rate("400 Gb/s"), parse_rate("25MB/s")
    (25000000.0, 50000000000.0, 25000000.0)

    Args:
        text: a number with its unit; a bare number is in bits per second, as for `tc`.

    Returns:
        Bytes per second; any number, negative ones too: callers say which they can have.

    Raises:
        UnitError: no number, or an unknown unit.
    """
    match = re.fullmatch(_SIGNED + r"\s*([A-Za-z/]*)", text.strip())
    if match is None:
        raise UnitError(f"rate {text!r} is not a number with a unit. Write for example {RATE_EXAMPLES}.")
    number, unit = match.groups()
    if (scale := _rate_scale(unit)) is None:
        raise UnitError(_unknown_rate(text, number, unit))
    return float(number.replace(",", "")) * scale


def parse_seconds(text: str) -> float:
    """Reads `300ms`, `50us` or `1.5s`.

    >>> parse_seconds("50us"), parse_seconds("1,520 ms")
    (5e-05, 1.52)

    Raises:
        UnitError: not a number with a unit.
    """
    match = re.fullmatch(_NUMBER + r"(?:[eE]([+-]?[0-9]{1,3}))? *([A-Za-zµμ]*)", text.strip())
    if match and match[3] in SECONDS:
        value = float(Decimal(f"{match[1].replace(',', '')}e{match[2] or 0}") * Decimal(SECONDS[match[3]]))
        if math.isfinite(value):
            return value
    if match and not match[3]:
        raise UnitError(f"{text!r} has no unit of time; write {match[1]}s or {match[1]}ms")
    known = ", ".join(unit for unit in SECONDS if unit != "μs")
    raise UnitError(f"{text!r} is no time; write a number and one of {known}, as in 50us")


class Seconds(float):
    """A time, read from `5s` and printed so: what a plan's arguments have for a type.

    >>> Seconds("1.5s") + 1, str(Seconds(0.3)), str(Seconds(90))
    (2.5, '0.3s', '90s')

    Raises:
        UnitError: a text that is no time.
    """

    def __new__(cls, value: str | float) -> Seconds:  # noqa: D102
        return super().__new__(cls, parse_seconds(value) if isinstance(value, str) else value)

    def __str__(self) -> str:
        return f"{float(self):.12g}s"

    __repr__ = __str__


def of_option(option: str, parse: Callable[[str], T], text: str) -> T:
    """Reads what a user wrote behind an option; the error names it.

    Raises:
        UnitError: `parse` does.
    """
    try:
        return parse(text)
    except UnitError as error:
        raise UnitError(f"{option}: {str(error).removesuffix('.')}.") from None


def print_bytes(num_bytes: int) -> str:
    """Prints a size exactly, with the largest unit that divides it: `4MiB`, `25MB`, `1000003`."""
    units = sorted(BYTE_UNITS.items(), key=lambda unit: -unit[1])
    unit, size = next((u, s) for u, s in units if (num_bytes and num_bytes % s == 0) or s == 1)
    return f"{num_bytes // size}{unit if size > 1 else ''}"


def print_gb(num_bytes: float) -> str:
    """Prints bytes as people speak of devices.

    >>> print_gb(8e10), print_gb(3e8)
    ('80 GB', '0.3 GB')
    """
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e6 else print_bytes(round(num_bytes))


def print_size(num_bytes: float) -> str:
    """Prints a size with three digits, in decimal units.

    >>> print_size(1_200_000), print_size(40)
    ('1.20 MB', '40 bytes')
    """
    for unit in ("TB", "GB", "MB", "KB"):
        if num_bytes >= (size := BYTE_UNITS[unit]):
            value = num_bytes / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}"
    return f"{num_bytes:.0f} bytes"


def print_rate(bytes_per_s: float) -> str:
    """Prints a bandwidth with three digits, as network people write it.

    >>> print_rate(25e6), print_rate(1.25e9)
    ('200 Mb/s', '10 Gb/s')
    """
    bits = bytes_per_s * 8
    for unit, size in (("Tb/s", 1e12), ("Gb/s", 1e9), ("Mb/s", 1e6), ("kb/s", 1e3)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}" if bits < 1000 * size else f"{bits / size:,.0f} {unit}"
    return f"{bits:.3g} b/s"


def print_exact_rate(bytes_per_s: float) -> str:
    """Prints a rate as `tc` takes it, with ten digits.

    >>> print_exact_rate(25e6)
    '200mbit'
    """
    bits = bytes_per_s * 8
    for unit, scale in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if bits >= scale:
            return f"{bits / scale:.10g}{unit}"
    return f"{bits:.10g}bit"


def print_ms(seconds: float) -> str:
    """Prints a time with three significant digits.

    >>> print_ms(1.5204), print_ms(0.04482), print_ms(0.00012), print_ms(3.7e-6)
    ('1,520 ms', '44.8 ms', '0.12 ms', '3.7 us')
    """
    ms = seconds * 1e3
    if 0 < ms < 0.0995:
        return f"{ms * 1e3:.3g} us"
    digits = 0 if ms >= 99.95 else 1 if ms >= 9.995 else 2
    return f"{ms:,.{digits}f} ms"


def _rate_scale(unit: str) -> float | None:
    """Returns bytes per second of one `unit`, or None if it is none: bits in `tc`'s spelling, `b/s`, or `B/s`."""
    match = re.fullmatch(r"([kmgtKMGT]?)(i?)([Bb][Ii][Tt](?:/s)?|[Bb]/s)|", unit)
    if match is None:
        return None
    prefix, binary, kind = (part or "" for part in match.groups())
    return float(1024 if binary else 1000) ** _PREFIXES[prefix.lower()] / (1 if kind == "B/s" else 8)


def _unknown_rate(text: str, number: str, unit: str) -> str:
    if found := re.fullmatch(r"([kmgt]?)b(?:ps)?", unit.lower()):
        prefix = found[1]
        bits, num_bytes = f"{number}{prefix.lower()}bit", f"{number}{prefix.upper()}B/s"
        return f"rate {text!r} can mean bits or bytes. Write {bits} or {num_bytes}."
    return (
        f"rate {text!r} has the unknown unit {unit!r}. Known: bit or b/s, and B/s for bytes, each behind k, M, G or T; "
        f"for example {RATE_EXAMPLES}."
    )
