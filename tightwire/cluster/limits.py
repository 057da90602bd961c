"""Which numbers a cluster can have, and how others are refused: by name, asking back for the unit."""

from __future__ import annotations

import math

from tightwire.errors import FileError

# Beyond these, a number is more likely to be in the wrong unit than true.
MAX_BANDWIDTH_BYTES_PER_S = 200e9
MAX_FABRIC_BYTES_PER_S = 2e12
MAX_LATENCY_S = 10.0
MAX_WORKERS = 1_000_000


def require_range(field: str, value: float, low: float, high: float) -> None:
    """Refuses a value outside `low` … `high`, or not a number.

    Raises:
        FileError: names the field, the value and the range.
    """
    if not low <= value <= high:
        raise FileError(
            f"{field}: {_shown(value)} is outside {low:g} … {high:g}; look at the unit in the field's name."
        )


def require_bandwidth(field: str, bytes_per_s: float) -> None:
    """Refuses bandwidths that no line has.

    Raises:
        FileError: names the field; asks back where bits were probably meant.
    """
    if not math.isfinite(bytes_per_s) or bytes_per_s <= 0:
        raise FileError(
            f"{field}: {bytes_per_s} bytes per second would never move anything; write more than 0."
        )
    if bytes_per_s > MAX_BANDWIDTH_BYTES_PER_S:
        gigabits = bytes_per_s * 8 / 1e9
        raise FileError(
            f"{field}: {bytes_per_s:g} bytes per second is {gigabits:,.0f} Gb/s for one line, more than any has; "
            f"if bits were meant, write {bytes_per_s / 8:g}."
        )


def require_fabric(field: str, bytes_per_s: float) -> None:
    """Refuses bandwidths that nothing has, not even what joins the devices of a node.

    Raises:
        FileError: names the field.
    """
    if bytes_per_s <= MAX_BANDWIDTH_BYTES_PER_S:
        require_bandwidth(field, bytes_per_s)
    require_range(field, bytes_per_s, 0.0, MAX_FABRIC_BYTES_PER_S)


def _shown(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e300 or math.isnan(value) else "a number of hundreds of digits"
