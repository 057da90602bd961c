"""How a device's messages leave it: by NCCL, by pinned host memory, or by each where it is good."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final, get_args

from tightwire.devices import device_named
from tightwire.errors import AttachError
from tightwire.transport.base import Transport, Work
from tightwire.transport.communicators import connect_nccl
from tightwire.transport.nccl import Nccl, require_devices_apart
from tightwire.transport.pinned import Pinned
from tightwire.transport.world import workers_per_node
from tightwire.transport.wrapper import Wrapper
from tightwire.ways import Over

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def reaching(transport: Transport, where: torch.device, over: Over) -> Transport:
    """Returns a transport that moves the memory of a device: itself, where it does already.

    Contract: every rank, with the same `over`; blocks where NCCL may be used.

    Raises:
        AttachError: NCCL was asked for, and torch has none, ranks share a device, or nodes are unknown.
    """
    if over not in get_args(Over):
        raise AttachError(f"over={over!r} is no way for messages; write {', '.join(get_args(Over))}.")
    device = device_named(where)
    if device.is_host or device.kind in transport.moves:
        return transport
    if over == "pinned" or device.kind != "cuda" or (over == "auto" and transport.size == 1):
        return Pinned(transport)
    card = f"{socket.gethostname()}: {device.identity(where)}"
    if over == "auto":
        return Nccl(transport, connect_nccl) if _all_may(transport, card) else Pinned(transport)
    if not _has_nccl():
        raise AttachError(
            f"over={over!r} asks for NCCL, and this build of torch has none; install one that has, or leave `over` out."
        )
    require_devices_apart(transport, card)
    return Nccl(transport, connect_nccl) if over == "nccl" else inside_nodes(transport, workers_per_node())


def inside_nodes(transport: Transport, per_node: int) -> Transport:
    """Returns a transport with NCCL among consecutive ranks of a node, and pinned memory across. All ranks."""
    if per_node < 1:
        raise AttachError(
            "over='nccl-inside' must know which workers share a node, and no launcher told (LOCAL_WORLD_SIZE): start "
            "with torchrun, or write over='nccl' or over='pinned'."
        )
    return NearAndFar.of(transport, per_node, lambda node: Nccl(node, connect_nccl), "cuda")


def _has_nccl() -> bool:
    import torch.distributed as dist

    return bool(dist.is_nccl_available())


def _all_may(transport: Transport, card: str) -> bool:
    """Whether every rank has NCCL and a device of its own."""
    cards = transport.exchange(card.encode() if _has_nccl() else b"")
    return all(cards) and len(set(cards)) == len(cards)


@final
class NearAndFar(Wrapper):
    """Messages to ranks of the same node by one transport, all others by another.

    A group of messages that start together may go both ways: those of the near transport start first, and its device's
    stream waits for them; the host waits for the others.
    """

    def __init__(self, far: Transport, near: Transport, node: Sequence[int], kind: str) -> None:
        super().__init__(far)
        self._near, self._node, self._kind = near, tuple(node), kind
        self.ordered = frozenset({kind})

    @classmethod
    def of(
        cls, transport: Transport, per_node: int, make: Callable[[Transport], Transport], kind: str
    ) -> NearAndFar:
        """Makes it over ranks of which so many in a row share a node. All ranks, in the same order."""

        mine: Transport | None = None
        members: Sequence[int] = ()
        for first in range(0, transport.size, per_node):
            node = range(first, min(first + per_node, transport.size))
            group = transport.group(node)
            if group is not None:
                mine, members = make(group), node
        assert mine is not None
        return cls(Pinned(transport), mine, members, kind)

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Sends to a neighbour of the node by the near transport."""
        if self._is_near(tensor, dst):
            return self._near.isend(tensor, self._node.index(dst), tag)
        return self.inner.isend(tensor, dst, tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Receives likewise."""
        if self._is_near(tensor, src):
            return self._near.irecv(tensor, self._node.index(src), tag)
        return self.inner.irecv(tensor, src, tag)

    def channel(self) -> Transport:
        """Returns channels of both."""
        return NearAndFar(self.inner.channel(), self._near.channel(), self._node, self._kind)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Returns a group by the far transport alone."""
        return child

    def require_sound(self) -> None:
        """Asks both."""
        self._near.require_sound()
        self.inner.require_sound()

    def close(self) -> None:
        """Closes both."""
        self._near.close()
        self.inner.close()

    def _is_near(self, tensor: Tensor, peer: int) -> bool:
        return tensor.device.type == self._kind and peer in self._node
