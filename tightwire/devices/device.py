"""The device contract: work that one thread asked for is seen by another only after a mark that it follows."""

from __future__ import annotations

import abc


class Mark:
    """A moment in what a thread has asked of a device, such as an event on a CUDA stream."""


class Device(abc.ABC):
    """Orders work on tensors between threads.

    A thread that fills memory marks; a thread that reads it follows that mark first. Where work is done when the call
    that asks for it returns, as on a CPU, both do nothing.
    """

    @abc.abstractmethod
    def mark(self) -> Mark:
        """Marks what this thread has asked for so far. Does not block."""

    @abc.abstractmethod
    def follow(self, mark: Mark) -> None:
        """Has what this thread asks for from now on begin after `mark`. Does not block the host."""
