"""The device contract: work that one thread asked for is seen by another only after a mark that it follows."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable
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
    def mark(self, at: torch.device) -> Mark:
        """Marks what this thread has asked of the device `at` so far, whichever device is current. Does not block."""

    @abc.abstractmethod
    def follow(self, mark: Mark) -> None:
        """Has what this thread asks of the mark's device from now on begin after it. Does not block the host."""

    @abc.abstractmethod
    def wait(self, mark: Mark) -> None:
        """Blocks the host until all that `mark` marked is done."""

    @abc.abstractmethod
    def drain(self, at: torch.device) -> None:
        """Blocks the host until the device `at` has done all that any thread asked of it."""

    @abc.abstractmethod
    def time_s(self, work: Callable[[], object], at: torch.device) -> float:
        """Returns the seconds that work takes: of this thread's processor on a host, else of the device `at`."""

    @abc.abstractmethod
    def side(self, like: torch.device) -> contextlib.AbstractContextManager[None]:
        """Within it, what this thread asks of the device `like` goes on a stream of its own, beside all others."""

    @abc.abstractmethod
    def current(self, at: torch.device) -> contextlib.AbstractContextManager[None]:
        """Within it, what this thread calls that names no device speaks to the device `at`."""

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
    def count(self) -> int:
        """Returns how many of its kind this process can use; 0 where torch has none."""

    @abc.abstractmethod
    def random_state(self, at: torch.device) -> Tensor:
        """Returns the state of the device's own generator, uint8 on the host; empty where it has none."""

    @abc.abstractmethod
    def set_random_state(self, at: torch.device, state: Tensor) -> None:
        """Takes back what `random_state` returned."""

    @abc.abstractmethod
    def identity(self, device: torch.device) -> str:
        """Returns which piece of hardware it is, unlike all others of this host."""

    @abc.abstractmethod
    def facts(self, device: torch.device) -> dict[str, object]:
        """Returns what there is to say of it beside a measurement: its name, memory, capability and the like."""

    @abc.abstractmethod
    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        """Returns what it holds; where the memory is the host's, nothing is counted."""

    @abc.abstractmethod
    def forget_peak(self, device: torch.device) -> None:
        """Has the peak of `memory` begin anew, and gives back what is kept for later use."""

    @abc.abstractmethod
    def require_order(self, at: torch.device) -> None:
        """Makes sure that what this thread asks of the device `at` is done, and not recorded to be done later.

        Raises:
            AttachError: a graph is being captured.
        """

    @abc.abstractmethod
    def require_usable(self, device: torch.device) -> None:
        """Makes sure that training on it can work. Local.

        Raises:
            AttachError: says what is missing, and what to do.
        """
