"""What a training loop does between its passes, watched while `auto` decides what may be offered to it."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import Tensor, nn

from tightwire.errors import AttachError
from tightwire.runtime.overlap.pending import hold, release
from tightwire.runtime.overlap.piecemeal import Piecemeal
from tightwire.runtime.overlap.visible import require_visible
from tightwire.runtime.step import Optimizers


class Habits:
    """Notices what a loop does that schedules cannot bear under which the next forward begins early.

    Attributes:
        touches_gradients: whether gradients were read or changed between backward and step.
    """

    def __init__(self) -> None:
        self.touches_gradients = False
        self._held: list[Tensor] = []

    def hold(self, gradients: Iterable[Tensor]) -> None:
        """Watches gradients from the end of a pass on."""
        self._held = list(gradients)
        for gradient in self._held:
            hold(gradient, functools.partial(self._let_go, gradient))

    def note_touch(self) -> None:
        """Takes in that a gradient was touched, by whoever made the loop."""
        self.touches_gradients = True
        self.release()

    def _let_go(self, gradient: Tensor) -> None:
        release(gradient)  # whatever others released meanwhile
        self.note_touch()

    def release(self) -> None:
        """Watches no longer: the optimizer steps, or another pass begins."""
        for gradient in self._held:
            release(gradient)
        self._held = []


def obstacles(model: nn.Module, optimizers: Optimizers, habits: Habits, forwards: int) -> list[str]:
    """Returns why the next forward must not begin early in this loop; nothing where it may.

    Args:
        model: attached.
        optimizers: of it.
        habits: seen so far.
        forwards: passes that were seen.
    """
    found = []
    if habits.touches_gradients:
        found.append("gradients are read or changed between backward() and step()")
    if forwards == 0:
        found.append("the model's forward passes are compiled, or go by other methods than forward")
    try:
        require_visible(model, "auto")
        Piecemeal(optimizers, "auto")
    except AttachError as error:
        found.append(str(error).split(";", maxsplit=1)[0])
    return found
