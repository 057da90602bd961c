"""Host memory: work is done when the call that asks for it returns, so there is no order to keep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
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

    def mark(self) -> Mark:
        """Marks nothing."""
        return _PAST

    def follow(self, mark: Mark) -> None:
        """Has nothing to follow."""

    def wait(self, mark: Mark) -> None:
        """Has nothing to wait for."""

    def side(self, like: torch.device) -> contextlib.AbstractContextManager[None]:
        """Changes nothing: there are no streams."""
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

    def identity(self, device: torch.device) -> str:
        """Returns its kind: there is one."""
        return self.kind

    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        """Counts nothing."""
        return DeviceMemory(allocated_bytes=0, peak_bytes=0, pinned_bytes=0)

    def require_usable(self, device: torch.device) -> None:
        """Accepts."""
