"""Slow workers: which rank, how much, and when."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, final

from tightwire.errors import LabError

VARIABLE = "TIGHTWIRE_SLOW"
# One freeze and one thaw: long against a scheduler's slice, short against a training step.
CYCLE_S = 0.1
# Mean length of a slow stretch, and of one between two, at random times.
STRETCH_S = 2.0


@dataclass(frozen=True)
class Slow:
    """One worker's slowness.

    Attributes:
        rank: the worker.
        factor: how many times as long it takes, above 1.
        at_random: in stretches of about 2 s at random times, half of the time; else always.
        emulated: the worker is not stopped; it is told, and emulated compute waits the longer (`slowdown`).
    """

    rank: int
    factor: float
    at_random: bool = False
    emulated: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `RANK:FACTORx[,random][,emulated]`.

        Raises:
            LabError: something else, or a factor that slows nothing.

        >>> Slow.parse("2:3x,random")
        Slow(rank=2, factor=3.0, at_random=True, emulated=False)
        """
        match = re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)x((?:,(?:random|emulated))*)", text.strip())
        if not match or float(match[2]) <= 1:
            raise LabError(
                f"--slow {text} is not understood; write the rank, and how many times as long it takes, above 1: 2:3x, "
                "2:3x,random (in stretches, half of the time) or 2:3x,emulated (timed waits take longer)."
            )
        words = match[3].split(",")
        return cls(int(match[1]), float(match[2]), "random" in words, "emulated" in words)

    def __str__(self) -> str:
        words = [word for word, on in (("random", self.at_random), ("emulated", self.emulated)) if on]
        return ",".join([f"{self.rank}:{self.factor:g}x", *words])

    def factor_at(self, seconds: float) -> float:
        """Returns how slow the worker is at a time: stretches are drawn from the rank, so anyone can tell."""
        if not self.at_random:
            return self.factor
        drawn = random.Random(f"{self.rank} {int(seconds // STRETCH_S)}")
        return self.factor if drawn.random() < 0.5 else 1.0


def slowdown() -> float:
    """Returns how many times as long emulated compute takes on this worker now: what its lab says, else 1."""
    told = os.environ.get(VARIABLE)
    return Slow.parse(told).factor_at(time.time()) if told else 1.0


@final
class Brake:
    """Slows workers of a running command by stopping and continuing them, on a thread of its own.

    Args:
        slow: whom; those of emulated compute are left alone.
        freeze: stops a rank where it is.
        thaw: lets it go on.
    """

    def __init__(
        self, slow: Sequence[Slow], freeze: Callable[[int], None], thaw: Callable[[int], None]
    ) -> None:
        self._slow = [one for one in slow if not one.emulated]
        self._freeze, self._thaw = freeze, thaw
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._drag, args=(one,), daemon=True) for one in self._slow]
        for thread in self._threads:
            thread.start()

    def release(self) -> None:
        """Lets all go on at their own pace."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _drag(self, slow: Slow) -> None:
        while not self._over.is_set():
            factor = slow.factor_at(time.time())
            self._over.wait(CYCLE_S / factor)
            if factor > 1:
                self._freeze(slow.rank)
                self._over.wait(CYCLE_S * (1 - 1 / factor))
                self._thaw(slow.rank)
