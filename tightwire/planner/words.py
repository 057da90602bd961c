"""Numbers for people."""

from __future__ import annotations


def print_ms(seconds: float) -> str:
    """Prints a time with three significant digits.

    >>> print_ms(1.5204), print_ms(0.04482), print_ms(0.00012)
    ('1,520 ms', '44.8 ms', '0.12 ms')
    """
    ms = seconds * 1e3
    digits = 0 if ms >= 99.95 else 1 if ms >= 9.995 else 2
    return f"{ms:,.{digits}f} ms"


def print_size(num_bytes: float) -> str:
    """Prints a size in decimal units.

    >>> print_size(1_200_000), print_size(40)
    ('1.20 MB', '40 bytes')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= size:
            return (
                f"{num_bytes / size:.3g} {unit}"
                if num_bytes / size >= 100
                else f"{num_bytes / size:.2f} {unit}"
            )
    return f"{num_bytes:.0f} bytes"


def print_rate(bytes_per_s: float) -> str:
    """Prints a bandwidth as network people write it.

    >>> print_rate(25e6), print_rate(1.25e9)
    ('200 Mb/s', '10 Gb/s')
    """
    bits = bytes_per_s * 8
    for unit, size in (("Tb/s", 1e12), ("Gb/s", 1e9), ("Mb/s", 1e6), ("kb/s", 1e3)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits:.3g} b/s"
