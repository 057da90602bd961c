"""Tells an optimizer which rounds of a plan are exact, so that its second moment learns from no others."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer

from tightwire.compression import Identity
from tightwire.compression.ema import MovingAverage
from tightwire.compression.stage import sender_at
from tightwire.errors import AttachError
from tightwire.optim import ExactVariance, OneBitAdam
from tightwire.plan import Plan
from tightwire.sync import Rounds

# Rounds looked at for an exact one; plans that have none early have none to learn from.
LOOKED_AT = 3


def configure_variance(optimizer: Optimizer, plan: Plan, last_round: Callable[[], int]) -> None:
    """Makes an optimizer learn variances in the rounds that `plan` sends as they are, if it compresses averages.

    Under local rounds of momenta it learns none, and sums up what momenta move.

    Args:
        optimizer: the user's.
        plan: under which it steps.
        last_round: returns the number of the last round whose mean the gradients have; 0 where none are counted, and
            then one step is one round.

    Raises:
        AttachError: an optimizer that would learn from compressed rounds, averages otherwise, or would never learn.
    """
    stages = [stage for stage in plan.compression if isinstance(stage, MovingAverage)]
    gathers = isinstance(plan.sync, Rounds) and plan.sync.optimizer_state == "momenta"
    if gathers and not isinstance(optimizer, OneBitAdam):
        raise AttachError(
            f"{type(optimizer).__name__} cannot train under {plan}: its rounds average what the momenta of "
            "tightwire.optim.OneBitAdam moved. Use that, or state=kept."
        )
    if isinstance(optimizer, OneBitAdam):
        optimizer.gathers = gathers
    if isinstance(optimizer, ExactVariance):
        if gathers:
            optimizer.learns = lambda step: False
        else:
            optimizer.learns = _ExactSteps(plan, last_round) if stages else (lambda step: True)
    for stage in stages:
        _require_fit(optimizer, plan, stage)


class _ExactSteps:
    """Tells whether a step's gradients are exact: whether all rounds since the step before were.

    Rounds are counted by the engine, so that a step which was skipped, as by AMP's scaler, shifts nothing.
    """

    def __init__(self, plan: Plan, last_round: Callable[[], int]) -> None:
        self._plan, self._last_round = plan, last_round
        self._step, self._before, self._now = 0, last_round(), last_round()

    def __call__(self, step: int) -> bool:
        if step != self._step:
            self._step, self._before, self._now = step, self._now, self._last_round()
        if self._now == 0:
            return _is_exact(self._plan, step)
        rounds = range(self._before + 1, self._now + 1)
        return bool(rounds) and all(_is_exact(self._plan, number) for number in rounds)


def _is_exact(plan: Plan, round_number: int) -> bool:
    return isinstance(sender_at(plan.compression, round_number), Identity)


def _require_fit(optimizer: Optimizer, plan: Plan, stage: MovingAverage) -> None:
    kind = type(optimizer).__name__
    betas = {group["betas"][0] for group in optimizer.param_groups if "betas" in group}
    if not betas:
        return  # no second moment to spoil
    if not isinstance(optimizer, ExactVariance):
        raise AttachError(
            f"{kind} cannot train under {plan}: its second moment would learn from compressed gradients. Use "
            "tightwire.optim.OneBitAdam or OneBitLamb, which learn in exact rounds only."
        )
    if betas != {stage.beta}:
        raise AttachError(
            f"the plan averages with {stage}, and {kind} with betas[0] of {', '.join(map(str, sorted(betas)))}: they "
            "follow the same average, so give both the same."
        )
    if not any(_is_exact(plan, number) for number in range(1, LOOKED_AT + 1)):
        raise AttachError(
            f"{plan} has no exact rounds in which {kind} could learn its second moment: add +dense-first:1000, or "
            "+dense-growing:16."
        )
