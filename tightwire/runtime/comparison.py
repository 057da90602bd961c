"""What ranks compare in every round: options, passes, steps, and digests of parameters that should be equal."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import Parameter

from tightwire.runtime.in_force import InForce
from tightwire.runtime.membership import Standing
from tightwire.runtime.passes import ForwardWatch
from tightwire.runtime.replicas import ReplicaDigest, digests_by_name

STEPS = "optimizer steps since all met last"
SKIPPED = "forward passes that no backward pass followed"


class Comparison:
    """Tells a membership how this rank stands, and in words where ranks differ."""

    def __init__(
        self, now: InForce, passes: ForwardWatch, shared: Callable[[], dict[str, Parameter]]
    ) -> None:
        """Watches a run.

        Args:
            now: what is in force there.
            passes: of this rank.
            shared: returns what is kept in step, by name.
        """
        self._now, self._passes, self._shared = now, passes, shared
        self._replicas = ReplicaDigest()

    def standing(self) -> Standing:
        """Returns what travels with a round: the passes, and 24 bits that must be equal on all ranks.

        Survivors of a death may train on for some steps until they go on together. Where replicas may differ between
        rounds, as under local methods, each has made its own number of steps then, and has the rates of those.
        """
        context, engine = self._now.context, self._now.engine
        have_own_rates = context.membership.is_elastic and not engine.keeps_replicas_equal
        digest = 0 if have_own_rates else context.optimizers.digest()
        if engine.compares_replicas:
            digest += self._replicas.digest(self._steps(), self._shared())
        return Standing(self._passes.judge(), digest % (1 << 24))

    def describe(self, standing: Standing) -> dict[str, str]:
        """Returns in words what a standing digests, for an error that says who has what."""
        facts = self._now.context.optimizers.hyperparameters() | {SKIPPED: str(standing.skipped)}
        if self._now.engine.compares_replicas:
            facts[STEPS] = str(self._steps())
            facts |= digests_by_name(self._shared())
        return facts

    def _steps(self) -> int:
        return self._replicas.steps(self._now.step - self._now.lead, self._now.context.membership.meetings)
