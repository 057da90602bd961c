"""A state on its way from the rank that has it to those that lack it, each of which passes it on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tightwire.errors import TransportError
from tightwire.runtime.reading import count_of, pack, room_for, unpack
from tightwire.transport import DONE, Transport, Work
from tightwire.transport.helpers import leave

LUGGAGE_TAG = 0
SIZE_BYTES = 8
PIECE_BYTES = 512 << 10
log = logging.getLogger("tightwire")


def hand_over(
    transport: Transport, source: int, lacking: Sequence[int], luggage: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Sends from the source to those that lack something; returns what was received, None where nothing was.

    Args:
        transport: between all members.
        source: the rank that has it.
        lacking: the ranks that get it.
        luggage: plain values and tensors; on the source alone.

    The source goes on at once, and a thread sends. Each that gets something passes it on to the next, in pieces, so
    that many take hardly longer than one. The wait for a piece is short: a state that takes minutes is not taken for
    ranks that wait for each other, and a sender that stops is noticed within the deadline.

    Contract: the source and those that lack something, at once; the latter block. Nothing is unpickled but plain values
    and tensors.

    Raises:
        TransportError: what came cannot be read, or there is no memory for it.
    """
    chain = [source, *lacking]
    if transport.rank not in chain:
        return None
    place = chain.index(transport.rank)
    after = chain[place + 1] if place + 1 < len(chain) else None
    if place == 0:
        if after is not None and luggage is not None:
            _send_behind(transport, pack(luggage), after)
        return None
    before, onward = chain[place - 1], _Onward(transport, after)
    size = torch.empty(SIZE_BYTES, dtype=torch.uint8)
    transport.irecv(size, before, LUGGAGE_TAG).wait()
    if (num_bytes := count_of(size.numpy().tobytes())) is None:
        raise TransportError(
            f"rank {before} told no size of the state that it was to send: damaged, or of another version of "
            "Tightwire; nothing of it was taken up."
        )
    onward.send(size)
    packed = room_for(num_bytes, before)
    for piece in packed.split(PIECE_BYTES):
        transport.irecv(piece, before, LUGGAGE_TAG).wait()
        onward.send(piece)
    onward.wait()
    return unpack(packed.numpy().tobytes())


class _Onward:
    """Pieces on their way to the next rank, if there is one; one at a time."""

    def __init__(self, transport: Transport, after: int | None) -> None:
        self._transport, self._after = transport, after
        self._last: Work = DONE

    def send(self, piece: Tensor) -> None:
        if self._after is not None:
            self._last.wait()
            self._last = self._transport.isend(piece, self._after, LUGGAGE_TAG)

    def wait(self) -> None:
        self._last.wait()


def _send_behind(transport: Transport, packed: Tensor, after: int) -> None:
    """Sends a state on a thread; where that fails, whoever waits for it notices, and so does this rank's next round."""

    def send() -> None:
        onward = _Onward(transport, after)
        try:
            size = packed.numel().to_bytes(SIZE_BYTES, "little")
            for piece in (torch.frombuffer(bytearray(size), dtype=torch.uint8), *packed.split(PIECE_BYTES)):
                onward.send(piece)
            onward.wait()
        except (TransportError, RuntimeError) as error:
            log.info("a state did not reach rank %d: %s", after, error)

    thread = threading.Thread(target=send, name="tightwire hands over", daemon=True)
    thread.start()
    leave(thread)
