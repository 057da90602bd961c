"""Fitting positive constants to measurements, from a prior: few constants, robust to outliers.

The error is that of logarithms, so that all points count alike; `soft` errors beyond a scale count linearly. Each
constant has a prior with a spread (both in logarithms), so that one of which the data say nothing keeps a sane value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Constants = TypeVar("Constants")

SCALE = 0.05


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Where a constant is expected.

    Attributes:
        value: most likely.
        spread: standard deviation of its logarithm: 0.5 is a factor of 1.6 either way.
    """

    value: float
    spread: float = 0.5


def fit(
    build: Callable[..., Constants],
    priors: dict[str, Prior],
    predict: Callable[[Constants, Any], float],
    measured: Sequence[tuple[Any, float]],
) -> Constants:
    """Returns the constants under which `predict` is nearest to what was measured.

    Args:
        build: makes the constants from keyword arguments, one per prior.
        priors: by name.
        predict: from the constants and a case, something positive.
        measured: cases, and what was measured of each.
    """
    import numpy as np
    from scipy.optimize import least_squares

    names = list(priors)
    centre = np.log([priors[name].value for name in names])
    spread = np.array([priors[name].spread for name in names])

    def constants(theta: Any) -> Constants:
        return build(**dict(zip(names, map(math.exp, theta), strict=True)))

    def residuals(theta: Any) -> Any:
        held = constants(theta)
        errors = np.array([math.log(predict(held, case) / value) for case, value in measured]) / SCALE
        soft = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([soft, (theta - centre) / spread])

    return constants(least_squares(residuals, centre, diff_step=1e-3).x)


def as_numbers(constants: Any) -> dict[str, float]:
    """Returns the fields of fitted constants, for reports."""
    return {name: float(value) for name, value in dataclasses.asdict(constants).items()}
