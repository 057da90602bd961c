"""Host memory: work is done when the call that asks for it returns, so there is no order to keep."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, final

from tightwire.devices.device import Device, DeviceMemory, Mark

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@final
class HostMark(Mark):
    """Every moment is past."""


_PAST = HostMark()


@final
class Cpu(Device):
    """The null object among devices."""

    kind = "cpu"
    is_host = True

    def mark(self, at: torch.device) -> Mark:
        """Marks nothing."""
        return _PAST

    def follow(self, mark: Mark) -> None:
        """Has nothing to follow."""

    def wait(self, mark: Mark) -> None:
        """Has nothing to wait for."""

    def drain(self, at: torch.device) -> None:
        """Has nothing to wait for."""

    def time_s(self, work: Callable[[], object], at: torch.device) -> float:
        """Returns processor time, for all work is this thread's own: what else the machine does is no part of it."""
        began_s = time.thread_time()
        work()
        return time.thread_time() - began_s

    def side(self, like: torch.device) -> contextlib.AbstractContextManager[None]:
        """Changes nothing: there are no streams."""
        return contextlib.nullcontext()

    def current(self, at: torch.device) -> contextlib.AbstractContextManager[None]:
        """Changes nothing: there is one."""
        return contextlib.nullcontext()

    def pinned(self, num_bytes: int) -> Tensor:
        """Returns ordinary memory."""
        import torch

        return torch.empty(num_bytes, dtype=torch.uint8)

    def give_back(self, memory: Tensor, after: Mark | None = None) -> None:
        """Leaves it to the allocator."""

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copies."""
        target.copy_(source)

    def count(self) -> int:
        """Returns 1: processors are one device."""
        return 1

    def random_state(self, at: torch.device) -> Tensor:
        """Returns nothing: the generator is the host's."""
        import torch

        return torch.empty(0, dtype=torch.uint8)

    def set_random_state(self, at: torch.device, state: Tensor) -> None:
        """Does nothing."""

    def identity(self, device: torch.device) -> str:
        """Returns its kind: there is one."""
        return self.kind

    def facts(self, device: torch.device) -> dict[str, object]:
        """Returns nothing."""
        return {}

    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        """Counts nothing."""
        return DeviceMemory(allocated_bytes=0, peak_bytes=0, pinned_bytes=0)

    def forget_peak(self, device: torch.device) -> None:
        """Counts nothing."""

    def require_order(self, at: torch.device) -> None:
        """Accepts: nothing is recorded."""

    def require_usable(self, device: torch.device) -> None:
        """Accepts."""
