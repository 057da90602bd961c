"""Units: what is printed is read again, common spellings are read, and others are refused by what is meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire.errors import UnitError
from tightwire.units import (
    of_option,
    parse_bytes,
    parse_rate,
    parse_seconds,
    print_exact_rate,
    print_ms,
    print_rate,
    print_size,
)


@given(st.floats(1e-9, 1e6))
def test_what_is_printed_is_read(value: float) -> None:
    assert parse_seconds(print_ms(value)) == pytest.approx(value, rel=6e-3)
    num_bytes = round(value * 1e9)
    assert parse_bytes(print_size(num_bytes)) == pytest.approx(num_bytes, rel=6e-3)
    assert parse_rate(print_rate(num_bytes + 1)) == pytest.approx(num_bytes + 1, rel=6e-3)
    assert parse_rate(print_exact_rate(num_bytes + 1)) == pytest.approx(num_bytes + 1, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1.5GB", 1_500_000_000), ("1,520 KB", 1_520_000), ("2kB", 2000), ("40 bytes", 40), ("0.5KiB", 512)],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("400Gb/s", 50e9),
        ("400 Gb/s", 50e9),
        ("3.2Tb/s", 400e9),
        ("1gbit", 125e6),
        ("10Gbit/s", 1.25e9),
        ("1KiB/s", 1024.0),
        ("1.5GB/s", 1.5e9),
        ("2,400 Gb/s", 300e9),
        ("8", 1.0),
    ],
)
def test_rates(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == pytest.approx(bytes_per_s)


@pytest.mark.parametrize(
    ("text", "seconds"), [("300ms", 0.3), ("0.3 s", 0.3), ("1e3us", 1e-3), ("50µs", 5e-5), ("2 min", 120.0)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0.3", "", "s", "-1s", "5 minutes", "nan s", "1e999s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UnitError, match=r"^--compute: .* write .*\.$"):
        of_option("--compute", parse_seconds, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2Gbps", "2gbit or 2GB/s"),
        ("10GB", "10gbit or 10GB/s"),
        ("nan", "not a number"),
        ("1 parsec/s", "unknown unit"),
    ],
)
def test_what_is_no_rate(text: str, says: str) -> None:
    with pytest.raises(UnitError, match=says):
        parse_rate(text)
