"""Trials side by side: each lane is a process that runs one trial after another. Most of a trial is waiting."""

from __future__ import annotations

import multiprocessing as mp
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, TypeVar

from tightwire.bench.chaos.worker import ChaosTrial
from tightwire.errors import LabError

Outcome = TypeVar("Outcome")


def side_by_side(
    trials: Iterator[ChaosTrial], run: Callable[[ChaosTrial], Outcome], lanes: int
) -> Iterator[Outcome]:
    """Yields what `run` returns of each trial, in the order in which they end.

    Contract: the caller has run nothing with torch: lanes are forks, and fork workers in their turn. A lane ends with
    this process, however that ends, and clears away what its trial made.

    Args:
        trials: taken one by one, when a lane is free.
        run: made in a lane.
        lanes: how many.

    Raises:
        LabError: a lane died.
    """
    context = mp.get_context("fork")
    mine: list[Connection] = []
    processes = []
    try:
        for _ in range(lanes):
            here, there = context.Pipe()
            mine.append(here)
            processes.append(context.Process(target=_lane, args=(there, tuple(mine), run), daemon=True))
            processes[-1].start()
            there.close()
        busy = [lane for lane in mine if _give(lane, trials)]
        while busy:
            for lane in wait(busy):
                assert isinstance(lane, Connection)
                yield _take(lane)
                if not _give(lane, trials):
                    busy.remove(lane)
    finally:
        for lane in mine:
            lane.close()
        for process in processes:
            process.terminate()
            process.join()


def _give(lane: Connection, trials: Iterator[ChaosTrial]) -> bool:
    """Hands a lane the next trial; returns whether there was one."""
    trial = next(trials, None)
    if trial is not None:
        lane.send(trial)
    return trial is not None


def _take(lane: Connection) -> Any:
    try:
        return lane.recv()
    except EOFError:
        raise LabError("a process that runs trials died; was it killed for lack of memory?") from None


def _leave(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _lane(there: Connection, campaign: Sequence[Connection], run: Callable[[ChaosTrial], Any]) -> None:
    for connection in campaign:  # so that nobody but the campaign holds them open
        connection.close()
    # The campaign ends its lanes, also after a Ctrl-C, which the terminal tells to all of them. Once: another signal
    # would end the clearing away.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    with suppress(EOFError):
        while True:
            there.send(run(there.recv()))
