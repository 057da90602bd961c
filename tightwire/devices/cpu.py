"""Host memory: work is done when the call that asks for it returns, so there is no order to keep."""

from __future__ import annotations

from typing import final

from tightwire.devices.device import Device, Mark


@final
class HostMark(Mark):
    """Every moment is past."""


_PAST = HostMark()


@final
class Cpu(Device):
    """The null object among devices."""

    def mark(self) -> Mark:
        """Marks nothing."""
        return _PAST

    def follow(self, mark: Mark) -> None:
        """Has nothing to follow."""
