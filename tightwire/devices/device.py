"""The device contract: work that one thread asked for is seen by another only after a mark that it follows."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Mark:
    """A moment in what a thread has asked of a device, such as an event on a CUDA stream."""


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """What a device holds for this process, in bytes.

    Attributes:
        allocated_bytes: in tensors now.
        peak_bytes: in tensors, at most so far.
        pinned_bytes: of host memory that copies use.
    """

    allocated_bytes: int
    peak_bytes: int
    pinned_bytes: int


class Device(abc.ABC):
    """Orders work on tensors between threads and the host.

    Work on a device is done later than it is asked for, in order within a stream, and in any order across streams.
    A thread that fills memory marks; a thread that reads it follows that mark first, and the host waits for it before
    it looks. Where work is done when the call that asks for it returns, as on a CPU, all of this does nothing.

    Attributes:
        kind: the type that torch gives it, as in `torch.device(kind, 0)`.
        is_host: whether its memory is the host's own, so that transports read it as it is.
    """

    kind: str
    is_host: bool

    @abc.abstractmethod
    def mark(self) -> Mark:
        """Marks what this thread has asked for so far. Does not block."""

    @abc.abstractmethod
    def follow(self, mark: Mark) -> None:
        """Has what this thread asks for from now on begin after `mark`. Does not block the host."""

    @abc.abstractmethod
    def wait(self, mark: Mark) -> None:
        """Blocks the host until all that `mark` marked is done."""

    @abc.abstractmethod
    def side(self, like: torch.device) -> contextlib.AbstractContextManager[None]:
        """Within it, what this thread asks of the device `like` goes on a stream of its own, beside all others."""

    @abc.abstractmethod
    def pinned(self, num_bytes: int) -> Tensor:
        """Returns (num_bytes,) uint8 host memory that copies to and from the device need not wait for, from a pool."""

    @abc.abstractmethod
    def give_back(self, memory: Tensor, after: Mark | None = None) -> None:
        """Returns host memory to the pool, to be handed out again once `after` is over; now, if nothing is named."""

    @abc.abstractmethod
    def copy(self, source: Tensor, target: Tensor) -> None:
        """Starts a copy between device memory and pinned memory, in order with what else this thread asks for."""

    @abc.abstractmethod
    def identity(self, device: torch.device) -> str:
        """Returns which piece of hardware it is, unlike all others of this host."""

    @abc.abstractmethod
    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        """Returns what it holds; where the memory is the host's, nothing is counted."""

    @abc.abstractmethod
    def require_usable(self, device: torch.device) -> None:
        """Makes sure that training on it can work. Local.

        Raises:
            AttachError: says what is missing, and what to do.
        """
