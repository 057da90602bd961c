"""What becomes of the optimizer's state in a round of a local method."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.round import Round
from tightwire.errors import MismatchError
from tightwire.plan import Plan
from tightwire.runtime.agreement import require_agreement
from tightwire.runtime.context import RunContext
from tightwire.runtime.exchange import Exchange

# What optimizers call averages of squares and the like; all else of a parameter's shape is taken for a first moment.
VARIANCES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta"})


class States:
    """Averages or resets the state that the user's optimizer keeps of each parameter.

    What is averaged are the tensors of the parameter's own shape (momenta, second moments), exactly, beside the
    parameters; counters of steps stay. Exchanges are built when they are first needed, for there is no state before.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        plan: Plan,
        context: RunContext,
        policy: str,
        periods: tuple[int, int] = (1, 1),
    ) -> None:
        """Takes what is done when.

        Args:
            parameters: by name.
            plan: whose architecture carries state.
            context: over all workers.
            policy: `kept`, `averaged`, `reset` or `momenta`.
            periods: rounds from one average of first moments to the next, and of second moments; 0 for never.
        """
        self._parameters, self._context, self._policy = parameters, context, policy
        self._periods = periods
        self._plan = Plan.parse(f"bsp/{plan.architecture}/none/sequential")
        # By whether first and second moments travel.
        self._exchanges: dict[tuple[bool, bool], Exchange] = {}

    @torch.no_grad()
    def treat(self, now: Round, share: float) -> int:
        """Does to the state what the policy says; returns the bytes that this rank sends by it.

        Args:
            now: the round, the same on every rank.
            share: this worker's weight in the mean, over the average weight.

        Contract: every rank, after a round that counts; blocks if state is averaged.

        Raises:
            MismatchError: ranks whose optimizers hold different state.
        """
        if self._policy == "reset":
            for parameter in self._parameters.values():
                self._context.optimizers.forget(parameter)
        return self._average(now, share) if self._policy == "averaged" else 0

    def close(self) -> None:
        """Ends the exchanges' threads."""
        for exchange in self._exchanges.values():
            exchange.close()

    def _average(self, now: Round, share: float) -> int:
        momenta, variances = (bool(period) and now.number % period == 0 for period in self._periods)
        if not (momenta or variances):
            return 0
        tensors = self._tensors(momenta=momenta, variances=variances)
        exchange = self._exchanges.get((momenta, variances))
        if exchange is None:
            require_agreement(self._context.transport.inner, {k: list(t.shape) for k, t in tensors.items()})
            if not tensors:
                return 0
            exchange = self._exchanges[momenta, variances] = self._context.exactly().exchange(
                tensors, self._plan
            )
        buckets = exchange.buckets
        if {name for bucket in buckets for name in bucket.views} != set(tensors):
            raise MismatchError(
                "the optimizer's state is not what it was when it was averaged first; use state=kept."
            )
        exchange.begin(now)
        for bucket in buckets:
            bucket.pack({name: tensors[name] for name in bucket.views})
            if share != 1.0:
                bucket.flat.mul_(share)
        exchange.end()
        if exchange.wait():
            for bucket in buckets:
                bucket.unpack({name: tensors[name] for name in bucket.views})
        return exchange.bytes_in(now.number)

    def _tensors(self, *, momenta: bool, variances: bool) -> dict[str, Tensor]:
        """Returns the state that can be averaged, by parameter name and what the optimizer calls it."""
        return {
            f"{name}/{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self._context.optimizers.state_of(parameter).items()
            if isinstance(value, Tensor)
            and value.shape == parameter.shape
            and value.is_floating_point()
            and key != "step"
            and (variances if key in VARIANCES else momenta)
        }
