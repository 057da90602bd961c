"""Several connections between every two ranks, used in turn: one TCP stream may not fill a fast or long line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from tightwire.transport.base import Transport, Work
from tightwire.transport.wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor


@final
class Striped(Wrapper):
    """Sends message number t over connection t mod k, by its tag, so that consecutive tags travel side by side."""

    def __init__(self, streams: Sequence[Transport]) -> None:
        """Bundles transports over the same ranks, at least one; collectives go over the first."""
        super().__init__(streams[0])
        self._streams = tuple(streams)

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Sends on the tag's stream."""
        return self._streams[tag % len(self._streams)].isend(tensor, dst, tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Receives on the tag's stream."""
        return self._streams[tag % len(self._streams)].irecv(tensor, src, tag)

    def channel(self) -> Transport:
        """Returns as many new streams."""
        return Striped([stream.channel() for stream in self._streams])

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Returns the child as it is: a group has one stream."""
        return child

    def close(self) -> None:
        """Closes all streams."""
        for stream in self._streams:
            stream.close()
