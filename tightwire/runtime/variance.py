"""Tells an optimizer which rounds of a plan are exact, so that its second moment learns from no others."""

from __future__ import annotations

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


def configure_variance(optimizer: Optimizer, plan: Plan) -> None:
    """Makes an optimizer learn variances in the rounds that `plan` sends as they are, if it compresses averages.

    One step is one round; a round that is skipped is no step, so after it the optimizer is that much behind. Under
    local rounds of momenta it learns none, and sums up what momenta move.

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
            optimizer.learns = (lambda step: _is_exact(plan, step)) if stages else (lambda step: True)
    for stage in stages:
        _require_fit(optimizer, plan, stage)


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
