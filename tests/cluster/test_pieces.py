"""Lines through times: found again, no more of them than needed, and none that contradicts physics."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire.cluster.pieces import fit_line, fit_lines

SIZES = [8 * 2**power for power in range(31)]


def protocols(num_bytes: float) -> float:
    """LL, LL128 and Simple, whichever is fastest."""
    return min(10e-6 + num_bytes / 5e9, 20e-6 + num_bytes / 40e9, 60e-6 + num_bytes / 220e9)


def test_switches_of_protocol_are_found() -> None:
    draw = random.Random(1)
    points = [(float(size), protocols(size) * draw.gauss(1, 0.02)) for size in SIZES]
    lines, residual = fit_lines(points)
    assert len(lines) == 3
    assert residual < 0.03
    for size in SIZES:
        seconds = [line for line in lines if line.from_bytes <= size][-1].seconds(size)
        assert seconds == pytest.approx(protocols(size), rel=0.08)
    for before, after in itertools.pairwise(lines):
        assert before.seconds(after.from_bytes) == pytest.approx(after.seconds(after.from_bytes), rel=0.03)
    alpha_s, beta = fit_line(points)
    assert max(abs((alpha_s + beta * size) / seconds - 1) for size, seconds in points) > 0.5


@given(alpha_s=st.floats(1e-6, 1e-3), beta=st.floats(1e-12, 1e-7))
def test_one_line_stays_one(alpha_s: float, beta: float) -> None:
    lines, residual = fit_lines([(float(size), alpha_s + beta * size) for size in SIZES])
    assert len(lines) == 1
    assert residual < 1e-6
    assert lines[0].beta_s_per_byte == pytest.approx(beta, rel=1e-4)


@given(st.lists(st.tuples(st.floats(1, 1e12), st.floats(1e-7, 1e3)), min_size=1, max_size=20))
def test_any_times_give_times(points: list[tuple[float, float]]) -> None:
    lines, _ = fit_lines(points)
    assert lines[0].from_bytes == 0
    assert all(line.alpha_s >= 0 and line.beta_s_per_byte >= 0 and line.seconds(1e6) > 0 for line in lines)
