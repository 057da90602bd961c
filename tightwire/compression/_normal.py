"""Squared errors of codecs on independent normal elements of variance 1: what codecs declare, in closed form or nearly.

Gradients of one layer are near enough to normal for choosing among programs and plans. Functions return E(x − C(x))²,
which is relative, because E x² is 1.
"""

from __future__ import annotations

import bisect
import functools
import math
from statistics import NormalDist

_NORMAL = NormalDist()
# Elements of a sample that has every magnitude as often as it occurs.
_POINTS = 2000
# Of the largest of many: Euler's constant moves it beyond the quantile of 1/n.
_GUMBEL = math.exp(-0.5772)
# E 2^(2e)/E x² of x = m·2^e, m in [1, 2): elements lie anywhere between powers of two.
_SHARE_OF_POWER = 0.54


def largest(numel: int) -> float:
    """Returns about what the largest of `numel` magnitudes is.

    >>> round(largest(1024), 1)
    3.5
    """
    return _NORMAL.inv_cdf(1 - _GUMBEL / (2 * max(numel, 2)))


def rounding_to_float(mantissa_bits: int) -> float:
    """Returns the error of rounding to nearest with so many bits after the leading one."""
    return float(_SHARE_OF_POWER * 4.0**-mantissa_bits / 12)


def rounding_to_steps(step: float, levels: int, *, stochastic: bool) -> float:
    """Returns the error of rounding to the multiples of a step, up to so many times it; cut to the last one."""
    if step < 0.5:
        return step**2 / (6 if stochastic else 12)
    return rounding_to(tuple(step * level for level in range(levels + 1)), stochastic=stochastic)


@functools.lru_cache(maxsize=256)
def rounding_to(levels: tuple[float, ...], *, stochastic: bool) -> float:
    """Returns the error of rounding magnitudes to levels, which begin at 0 and ascend; cut to the last one."""
    total = 0.0
    for x in _magnitudes():
        above = bisect.bisect_left(levels, x)
        if above == len(levels):
            total += (x - levels[-1]) ** 2
            continue
        low, high = levels[max(above - 1, 0)], levels[above]
        total += (high - x) * (x - low) if stochastic else min(high - x, x - low) ** 2
    return total / _POINTS


@functools.lru_cache(maxsize=256)
def selecting(ratio: float, levels: int = 0, numel: int = 0) -> float:
    """Returns the error of sending the share `ratio` of largest magnitudes, exactly or rounded to levels.

    Args:
        ratio: in (0, 1].
        levels: so many, evenly spaced between the least and the largest that are sent; 0 for exactly.
        numel: elements of which the largest is sent.

    >>> round(selecting(0.3), 3), selecting(1.0)
    (0.217, 0.0)
    """
    t = _NORMAL.inv_cdf(1 - ratio / 2) if ratio < 1 else 0.0
    left = 1 - 2 * (t * _NORMAL.pdf(t) + ratio / 2) if ratio < 1 else 0.0
    if not levels:
        return left
    step = (largest(numel) - t) / (levels - 1)
    grid = tuple(t + step * level for level in range(levels))
    sent = [_NORMAL.inv_cdf(1 - ratio / 2 * (1 - (i + 0.5) / _POINTS)) for i in range(_POINTS)]
    off = (min(abs(x - level) for level in grid) ** 2 for x in sent)
    return left + ratio * sum(off) / _POINTS


def selecting_signs(ratio: float, *, one_sided: bool) -> float:
    """Returns the error of sending the largest magnitudes, or those of one sign, as ± their mean."""
    if ratio >= 1:
        return 1 - 2 / math.pi
    share = ratio if one_sided else ratio / 2
    total = _NORMAL.pdf(_NORMAL.inv_cdf(1 - share)) * (1 if one_sided else 2)
    return 1 - total**2 / ratio


@functools.lru_cache(maxsize=256)
def sampling(ratio: float) -> float:
    """Returns the error of sending x/p with odds p = min(1, λ|x|) that sum to the share `ratio`."""
    if ratio >= 1:
        return 0.0
    low, high = 0.0, 1e9
    for _ in range(60):
        middle = math.sqrt(max(low, 1e-9) * high)
        share = sum(min(1.0, middle * x) for x in _magnitudes()) / _POINTS
        low, high = (middle, high) if share < ratio else (low, middle)
    odds = [(x, min(1.0, low * x)) for x in _magnitudes()]
    return sum(x * x * (1 / p - 1) for x, p in odds) / _POINTS


@functools.cache
def _magnitudes() -> tuple[float, ...]:
    return tuple(_NORMAL.inv_cdf(0.5 + (i + 0.5) / (2 * _POINTS)) for i in range(_POINTS))
