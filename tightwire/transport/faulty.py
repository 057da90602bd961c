"""A transport that breaks on purpose: `Faulty(transport, Freeze(rank=2, at_send=3))`."""

from __future__ import annotations

import abc
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tightwire.errors import TransportError
from tightwire.transport.base import DONE, Transport, Work
from tightwire.transport.wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor

Send = Callable[[], Work]


@dataclass(frozen=True, kw_only=True)
class Fault(abc.ABC):
    """What goes wrong, where and when.

    Attributes:
        rank: on which rank.
        at_send: at which of its sends, counted from 0 over all channels and groups.
    """

    rank: int
    at_send: int = 0

    @abc.abstractmethod
    def strike(self, transport: Transport, send: Send) -> Work:
        """Does the wrong thing in place of `send()`, on the transport that was to send."""


@final
@dataclass(frozen=True, kw_only=True)
class Drop(Fault):
    """The message is lost."""

    def strike(self, transport: Transport, send: Send) -> Work:
        """Sends nothing."""
        return DONE


@final
@dataclass(frozen=True, kw_only=True)
class Delay(Fault):
    """The message, and its sender, are late by `seconds`."""

    seconds: float

    def strike(self, transport: Transport, send: Send) -> Work:
        """Sleeps first."""
        time.sleep(self.seconds)
        return send()


@final
@dataclass(frozen=True, kw_only=True)
class Cut(Fault):
    """The rank loses its connections."""

    def strike(self, transport: Transport, send: Send) -> Work:
        """Closes the transport, and says so on this rank.

        Raises:
            TransportError: always.
        """
        transport.close()
        raise TransportError(f"the connections of rank {transport.rank} were cut on purpose")


@final
@dataclass(frozen=True, kw_only=True)
class Freeze(Fault):
    """The rank stops for ever, without a word: its thread, or with `process` its process (SIGSTOP)."""

    process: bool = False

    def strike(self, transport: Transport, send: Send) -> Work:
        """Never returns."""
        if self.process:
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()
        raise AssertionError


@final
@dataclass(frozen=True, kw_only=True)
class Kill(Fault):
    """The process ends without a word (SIGKILL). Threads cannot be killed: freeze them."""

    def strike(self, transport: Transport, send: Send) -> Work:
        """Never returns."""
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@final
class Faulty(Wrapper):
    """A transport with faults; every rank may be given the same ones, for each knows whose it is."""

    def __init__(
        self,
        inner: Transport,
        *faults: Fault,
        world_rank: int | None = None,
        sends: itertools.count[int] | None = None,
    ) -> None:
        super().__init__(inner)
        self._rank = inner.rank if world_rank is None else world_rank
        self._faults = faults
        self._sends = itertools.count() if sends is None else sends

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Sends, unless a fault has its moment."""
        number = next(self._sends)

        def send() -> Work:
            return self.inner.isend(tensor, dst, tag)

        for fault in self._faults:
            if (fault.rank, fault.at_send) == (self._rank, number):
                return fault.strike(self.inner, send)
        return send()

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Breaks channels and groups alike; their sends count with this one's."""
        return Faulty(child, *self._faults, world_rank=self._rank, sends=self._sends)
