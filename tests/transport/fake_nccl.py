"""A communicator that does what NCCL does, on threads, and tells at once what NCCL would hang on for ever.

Every rank's groups start in its own order, one after another; a group ends when each of its sends and receives has met
its other half in the group that the peer is at. Nothing is buffered. When no rank can go on, all are told, and how.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from tightwire.transport import Transport

AnyHub = TypeVar("AnyHub", bound="Hub")


class WouldHangError(RuntimeError):
    """NCCL would wait for ever."""


@dataclass
class Group:
    """What one rank has asked for: sends and receives by peer, in order; or a sum."""

    sends: dict[int, list[Tensor]] = field(default_factory=dict)
    receives: dict[int, list[Tensor]] = field(default_factory=dict)
    sum: Tensor | None = None
    met: list[Tensor] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.sum is None and not any(self.sends.values()) and not any(self.receives.values())

    def __str__(self) -> str:
        if self.sum is not None:
            return f"a sum of {self.sum.numel()} elements"
        sends = [f"a send to rank {peer}" for peer, tensors in self.sends.items() for _ in tensors]
        return " and ".join(
            sends + [f"a receive from rank {p}" for p, ts in self.receives.items() for _ in ts]
        )


class Hub:
    """One communicator, as all its ranks share it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.at: dict[int, Group] = {}
        self.left: set[int] = set()
        self.verdict = ""

    def run(self, rank: int, group: Group) -> None:
        with self.changed:
            self.at[rank] = group
            self._progress()
            self.changed.wait_for(lambda: group.is_done or bool(self.verdict), timeout=60)
            if not group.is_done:
                raise WouldHangError(self.verdict or f"rank {rank} waits with {group}, and its peer computes")
            self.at.pop(rank)

    def leave(self, rank: int) -> None:
        with self.changed:
            self.left.add(rank)
            self._progress()

    def _progress(self) -> None:
        self._meet()
        self._sum()
        waiting = {rank: group for rank, group in self.at.items() if not group.is_done}
        if not self.verdict and len(waiting) + len(self.left) == self.size and waiting:
            told = "; ".join(f"rank {rank} is at {group}" for rank, group in sorted(waiting.items()))
            gone = f"; ranks {sorted(self.left)} ask for nothing more" if self.left else ""
            self.verdict = f"NCCL would wait for ever: {told}{gone}"
        self.changed.notify_all()

    def _meet(self) -> None:
        for rank, group in self.at.items():
            for peer, tensors in group.sends.items():
                landing = self.at[peer].receives.get(rank, []) if peer in self.at else []
                while tensors and landing:
                    source, target = tensors.pop(0), landing.pop(0)
                    if source.nbytes != target.nbytes:
                        self.verdict = (
                            f"rank {rank} sends {source.nbytes} bytes, rank {peer} expects {target.nbytes}"
                        )
                        return
                    self.deliver(source, target)

    def deliver(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source.view(target.dtype).view(target.shape))

    def meet_all(self, rank: int, tensor: Tensor) -> list[Tensor]:
        """Returns what every rank came with, by rank, once all have come to a sum."""
        group = Group(sum=tensor)
        self.run(rank, group)
        return group.met

    def _sum(self) -> None:
        groups = [self.at[rank] for rank in sorted(self.at)]
        tensors = [group.sum for group in groups if group.sum is not None]
        if len(tensors) == self.size:
            for group in groups:
                group.met, group.sum = tensors, None


class Complete:
    def wait(self) -> None:
        pass

    def is_completed(self) -> bool:
        return True


class FakeCommunicator:
    """One rank's end of a hub."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self.hub, self.rank = hub, rank

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]
    ) -> Complete:
        group = Group()
        memory = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t, _ in receives if t.nbytes]
        for tensor, peer in sends:
            start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            if any(start < b and a < stop for a, b in memory):
                raise WouldHangError(f"rank {self.rank} sends what the same group overwrites")
            group.sends.setdefault(peer, []).append(tensor)
        for tensor, peer in receives:
            group.receives.setdefault(peer, []).append(tensor)
        self.hub.run(self.rank, group)
        return Complete()

    def all_reduce(self, tensor: Tensor) -> Complete:
        parts = self.hub.meet_all(self.rank, tensor.clone())
        tensor.copy_(torch.stack(parts).sum(0))
        return Complete()

    def fault(self) -> str:
        return ""

    def abort(self) -> None:
        self.hub.leave(self.rank)


class Hubs:
    """The communicators of a world, by name; `connect` is what `Nccl` is given."""

    def __init__(self) -> None:
        self._hubs: dict[str, Hub] = {}
        self._lock = threading.Lock()

    def connect(self, transport: Transport, name: str, at: torch.device) -> FakeCommunicator:
        return FakeCommunicator(self.hub(name, transport.size, Hub), transport.rank)

    def hub(self, name: str, size: int, make: Callable[[int], AnyHub]) -> AnyHub:
        with self._lock:
            return self._hubs.setdefault(name, make(size))  # type: ignore[return-value]
