"""The small all-reduces inside reductions: exact ones by recursive doubling or ring, rounded ones there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tightwire.architecture import Program, build, predict_bytes
from tightwire.compression import Codec, Identity

if TYPE_CHECKING:
    import torch

    from tightwire.architecture import Runner
    from tightwire.transport import Transport

# Below, a message costs its latency, and recursive doubling has the fewest.
SMALL_BYTES = 32 * 1024


def exact_bytes(numel: int, itemsize: int, workers: int, rank: int) -> int:
    """Returns the payload bytes that `rank` sends in one exact all-reduce."""
    return predict_bytes(_program(numel * itemsize, workers), Identity(), numel, itemsize, rank)


def exact_runner(
    transport: Transport, numel: int, dtype: torch.dtype, tag: int, device: torch.device | None = None
) -> Runner:
    """Builds an exact all-reduce of buffers on a device, the host by default; see `Runner`."""
    from tightwire.architecture import Runner
    from tightwire.architecture.allreduce.runner import HOST

    program = _program(numel * dtype.itemsize, transport.size)
    return Runner(
        program, transport, numel=numel, dtype=dtype, codec=Identity(), tag=tag, device=device or HOST
    )


def rounded_bytes(codec: Codec, numel: int, itemsize: int, workers: int, rank: int) -> int:
    """Returns the payload bytes that `rank` sends in one all-reduce of a codec's messages."""
    return predict_bytes(build("direct", workers), codec, numel, itemsize, rank)


def rounded_runner(
    codec: Codec,
    transport: Transport,
    numel: int,
    dtype: torch.dtype,
    tag: int,
    device: torch.device | None = None,
) -> Runner:
    """Builds an all-reduce of a codec's messages: to the owners of parts and back; see `Runner`."""
    from tightwire.architecture import Runner
    from tightwire.architecture.allreduce.runner import HOST

    program = build("direct", transport.size)
    return Runner(program, transport, numel=numel, dtype=dtype, codec=codec, tag=tag, device=device or HOST)


def _program(num_bytes: int, workers: int) -> Program:
    return build("recursive-doubling" if num_bytes <= SMALL_BYTES else "ring", workers)
