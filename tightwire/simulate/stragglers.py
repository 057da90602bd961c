"""Who waits for whom: how late the slowest of several workers is, or those that a round does not do without."""

from __future__ import annotations

import statistics


def slowest_delay(workers: int) -> float:
    """Returns how many standard deviations the slowest of N equal workers is expected to be late (Blom 1958).

    >>> [round(slowest_delay(n), 2) for n in (1, 4, 64)]
    [0.0, 1.05, 2.34]
    """
    return expected_delay(workers, workers)


def expected_delay(place: int, workers: int) -> float:
    """Returns how many standard deviations the worker that comes in at `place` of N is expected to be late.

    >>> round(expected_delay(3, 4), 2), expected_delay(2, 3)
    (0.3, 0.0)
    """
    return statistics.NormalDist().inv_cdf((place - 0.375) / (workers + 0.25))
