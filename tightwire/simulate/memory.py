"""What a plan adds to the memory of a worker's device, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tightwire.architecture import AllReduce
from tightwire.compression.codec import Codec
from tightwire.compression.routing import compression_for
from tightwire.compression.stage import Stage

if TYPE_CHECKING:
    from tightwire.plan import Plan
    from tightwire.profile import Profile

FLOAT_BYTES = 4


def added_bytes(plan: Plan, profile: Profile, workers: int) -> int | None:
    """Returns the device memory that exchanges by all-reduce hold beside the model and its optimizer.

    Buckets, of which gradients are views; a lossy message's input, which keeps what is left over; what stages remember;
    messages, which a gather holds of all workers. Left out are the pieces of sums that are about to land, 32 of 1 MiB a
    bucket at most where a program of ours makes them, and what kernels need meanwhile.

    Args:
        plan: whose averages are made on the device.
        profile: of the model.
        workers: how many take part.

    Returns:
        Bytes; None where a method holds more than it says, or averages are made in host memory.
    """
    if not isinstance(plan.architecture, AllReduce):
        return None
    total = 0
    for parameter in profile.parameters:
        num_bytes = parameter.numel * parameter.itemsize
        wide_bytes = parameter.numel * max(parameter.itemsize, FLOAT_BYTES)
        sender, *others = compression_for(plan.compression, num_bytes, max(len(parameter.shape), 1))
        if not isinstance(sender, Codec):
            return None
        copies = sum(stage.copies for stage in others if isinstance(stage, Stage))
        total += num_bytes + copies * wide_bytes
        if copies or not sender.lossless:
            total += wide_bytes if copies else num_bytes
        if copies and wide_bytes > num_bytes:
            total += wide_bytes + num_bytes  # the mean as stages see it, and what travels
        if not (sender.lossless and sender.sums_as == ""):
            messages = workers if sender.combine == "none" else 1
            total += messages * sender.wire_bytes(parameter.numel, parameter.itemsize)
    return total
