"""What methods with an exchange of their own share: messages of largest elements, and an exchange of all with all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tightwire import kernels
from tightwire.errors import TensorError
from tightwire.transport import Transport


def take_largest(x: Tensor, count: int, message: Tensor) -> None:
    """Moves the `count` largest elements from `x` to the message."""
    kernels.of(x).select_largest(x, message, count)


def add_message(message: Tensor, count: int, out: Tensor) -> None:
    """Adds a message of `count` elements to `out`.

    Raises:
        TensorError: indices that cannot be valid; nothing was applied.
    """
    if not kernels.of(out).scatter_largest(message, out, count, True):
        raise TensorError(
            f"a message of {count} elements does not fit a bucket of {out.numel()}: its indices do not ascend "
            "within it; it was corrupted, or written by another plan; nothing was applied."
        )


def swap_all(transport: Transport, outgoing: Sequence[Tensor], landing: Sequence[Tensor], tag: int) -> None:
    """Sends `outgoing[r]` to every other rank r and receives `landing[r]` from it, one pair of ranks at a time.

    Where order replaces tags, all start together: what starts together must be able to end together.

    Contract: every rank; blocks; sends the outgoing bytes, this rank's own place left out.
    """
    rank, size = transport.rank, transport.size
    distances = range(1, size)
    arriving = [transport.irecv(landing[rank - d], (rank - d) % size, tag) for d in distances]
    if any(outgoing[(rank + d) % size].device.type in transport.ordered for d in distances):
        arriving += [transport.isend(outgoing[(rank + d) % size], (rank + d) % size, tag) for d in distances]
        for work in arriving:
            work.wait()
        return
    for d, work in zip(distances, arriving, strict=True):
        peer = (rank + d) % size
        leaving = transport.isend(outgoing[peer], peer, tag)
        work.wait()
        leaving.wait()
