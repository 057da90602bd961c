"""How much a plan changes training: an order among plans, where nothing was measured of what a step is worth."""

from __future__ import annotations

import functools

from tightwire.answers import CompressionAnswer
from tightwire.averaging import AveragingMethod
from tightwire.compression import Codec
from tightwire.plan import Plan

# Parameters that are mixed with a few neighbours' only.
GOSSIP = 4.0
# What is lost without feedback is lost, or comes back as noise.
NO_FEEDBACK = 1.25
# Each stage beyond the first changes a little more.
STAGE = 1.05
# Of whom bytes are counted where only their ratio matters, and one bucket of as many elements.
SOME_WORKERS, SOME_SIDE = 8, 1024
# Casts need no feedback (bfloat16 and float16 are what mixed precision trains with).
CAST_RATIO = 2.0


def deviation(plan: Plan) -> float:
    """Orders plans by how much they change training; 1: every step is made with the exact mean gradient.

    The product of how many steps share an agreement or are behind it, and of how many times fewer bytes carry it,
    somewhat more where nothing makes up for what was not sent.

    >>> deviation(Plan.parse("bsp")), deviation(Plan.parse("local:8")), deviation(Plan.parse("bsp/allreduce/bf16"))
    (1.0, 8.0, 2.0)
    """
    final, _ = plan.sync.stretches()[-1]
    found = final.deviation * ratio(plan.compression)
    if not plan.architecture.agrees:
        found *= GOSSIP
    sender, *stages = plan.compression
    # What is as large as the mean, and is not the mean, is another direction, such as a median's.
    if not (sender.lossless or stages) and not 1.0 < ratio(plan.compression) <= CAST_RATIO:
        found *= NO_FEEDBACK
    return float(found * STAGE ** max(0, len(stages) - (0 if sender.lossless else 1)))


@functools.lru_cache(maxsize=1024)
def ratio(compression: tuple[CompressionAnswer, ...]) -> float:
    """Returns how many times fewer bytes than dense ones carry the agreement."""
    sender, numel = compression[0], SOME_SIDE**2
    if isinstance(sender, AveragingMethod):
        if sender.lossless:  # its bytes are a bound, and it changes nothing
            return 1.0
        dense = 2 * (SOME_WORKERS - 1) / SOME_WORKERS * 4 * numel
        return max(1.0, dense / max(1, sender.bytes_sent(((SOME_SIDE, SOME_SIDE),), 4, SOME_WORKERS, 0)))
    assert isinstance(sender, Codec), sender
    return 4 * numel / sender.wire_bytes(numel, 4)
