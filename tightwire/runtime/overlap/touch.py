"""Who is told that the loop touches gradients between backward and step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor


class TouchListener(Protocol):
    """Is told what the loop does with gradients between backward and step."""

    def hold(self, gradients: Iterable[Tensor]) -> None:
        """Watches gradients."""

    def release(self) -> None:
        """Watches no longer."""

    def note_touch(self) -> None:
        """Takes in that a gradient was touched."""
