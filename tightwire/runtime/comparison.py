"""What ranks compare in every round: options, passes, steps, and digests of parameters that should be equal."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import Parameter

from tightwire.runtime.course import Course
from tightwire.runtime.membership import Standing
from tightwire.runtime.passes import ForwardWatch
from tightwire.runtime.replicas import ReplicaDigest, digests_by_name

STEPS = "optimizer steps since all met last"
SKIPPED = "forward passes that no backward pass followed"


class Comparison:
    """Tells a membership how this rank stands, and in words where ranks differ."""

    def __init__(
        self, course: Course, passes: ForwardWatch, shared: Callable[[], dict[str, Parameter]]
    ) -> None:
        """Watches a run.

        Args:
            course: what happens between its steps.
            passes: of this rank.
            shared: returns what is kept in step, by name.
        """
        self._course, self._passes, self._shared = course, passes, shared
        self._replicas = ReplicaDigest()

    def standing(self) -> Standing:
        """Returns what travels with a round: the passes, and 24 bits that must be equal on all ranks."""
        digest = self._course.context.optimizers.digest()
        if self._course.engine.compares_replicas:
            digest += self._replicas.digest(self._steps(), self._shared())
        return Standing(self._passes.judge(), digest % (1 << 24))

    def describe(self, standing: Standing) -> dict[str, str]:
        """Returns in words what a standing digests, for an error that says who has what."""
        facts = self._course.context.optimizers.hyperparameters() | {SKIPPED: str(standing.skipped)}
        if self._course.engine.compares_replicas:
            facts[STEPS] = str(self._steps())
            facts |= digests_by_name(self._shared())
        return facts

    def _steps(self) -> int:
        return self._replicas.steps(self._course.step, self._course.context.membership.meetings)
