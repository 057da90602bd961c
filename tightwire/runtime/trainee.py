"""What a search for a plan needs of the run that it searches for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tightwire.plan import Plan
from tightwire.runtime.report import Report
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.spans import RoundTimes
from tightwire.transport import Transport


class Trainee(Protocol):
    """A run, seen by what chooses its plan while it trains."""

    @property
    def plan(self) -> Plan:
        """In force at present."""

    @property
    def step(self) -> int:
        """Optimizer steps made so far, equal on all that train."""

    @property
    def transport(self) -> Transport:
        """Between this worker and the others."""

    def adopt(self, plan: Plan) -> None:
        """Goes on under another plan. Every rank that trains."""

    def ask(self, answer: str) -> list[str | None]:
        """Returns what every rank answers; None of those that are finished. Every rank that trains."""

    def snapshot(self, *, remembering: bool = False) -> Snapshot:
        """Copies the present state, where the engine has nothing under way.

        Args:
            remembering: whether to copy what the engine remembers too. Every rank that trains, then.
        """

    def go_back(self, snapshot: Snapshot, plan: Plan, *, remembering: bool = False) -> None:
        """Restores a snapshot to the bit and goes on under a plan. Every rank that trains, at the same step.

        Args:
            snapshot: made on this rank.
            plan: the same on every rank.
            remembering: whether the engine takes up what the snapshot's remembered, too.
        """

    def evaluating(self) -> AbstractContextManager[None]:
        """Lends the model that all ranks would evaluate. Every rank that trains."""

    @property
    def times(self) -> RoundTimes:
        """For how long rounds kept the line, where buckets are averaged, on this rank."""

    @property
    def forwards(self) -> int:
        """Forward passes seen on this rank."""

    def report(self) -> Report:
        """Returns what happened so far."""
