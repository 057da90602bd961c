"""Validations to which nothing is fitted: each published case is predicted as it stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tightwire.validate.table import Point


class PublishedCase(Protocol):
    """A published figure, and how it is predicted."""

    @property
    def name(self) -> str:
        """What was measured."""

    @property
    def group(self) -> str:
        """What it competes within."""

    @property
    def figure(self) -> float:
        """What was published."""

    def predict(self) -> float:
        """Returns that figure as it is predicted."""

    def stated(self, predicted: float) -> tuple[float, float] | None:
        """Returns the interval that the prediction states, if it states one."""


def points_of(cases: Iterable[PublishedCase]) -> tuple[Point, ...]:
    """Returns a point for each case, all held out."""
    predicted = ((case, case.predict()) for case in cases)
    return tuple(
        Point(
            name=case.name, group=case.group, measured=case.figure, predicted=value, stated=case.stated(value)
        )
        for case, value in predicted
    )
