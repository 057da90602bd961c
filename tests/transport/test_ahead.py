"""The next world of an elastic job, connected behind training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tightwire.errors import PeerError
from tightwire.transport.ahead import ConnectedWorld, NextWorld


class Line:
    """In the place of a world's transport."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Maker:
    """Connects worlds when it is told to."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.go, self.fails = threading.Event(), False

    def __call__(self) -> ConnectedWorld:
        assert self.go.wait(10)
        self.go.clear()
        if self.fails:
            raise PeerError("rank 1 died while the workers met", [1])
        self.lines.append(Line())
        line: Any = self.lines[-1]
        return ConnectedWorld(len(self.lines), ("a", "b"), line)


@pytest.fixture
def maker() -> Iterator[Maker]:
    made = Maker()
    yield made
    made.go.set()


def connected(upcoming: NextWorld, maker: Maker) -> None:
    maker.go.set()
    while upcoming.is_under_way:
        threading.Event().wait(0.001)


def test_it_is_connected_once_and_taken_once(maker: Maker) -> None:
    upcoming = NextWorld(maker)
    upcoming.begin()  # not in a world yet
    assert not upcoming.is_under_way
    upcoming.allow()
    upcoming.begin()
    upcoming.begin()
    assert upcoming.is_under_way
    assert upcoming.names is None
    connected(upcoming, maker)
    assert upcoming.names == ("a", "b")
    world = upcoming.take()
    assert world is not None
    assert world.number == 1
    assert upcoming.take() is None
    upcoming.begin()  # until this worker is in the world that it took
    assert not upcoming.is_under_way


def test_another_takes_its_place_and_what_nobody_takes_is_closed(maker: Maker) -> None:
    upcoming = NextWorld(maker)
    upcoming.allow()
    for _ in range(2):
        upcoming.begin()
        connected(upcoming, maker)
    assert [line.is_closed for line in maker.lines] == [True, False]
    upcoming.drop(5)
    assert maker.lines[1].is_closed


def test_what_is_still_under_way_is_left_and_closed_later(maker: Maker) -> None:
    upcoming = NextWorld(maker)
    upcoming.allow()
    upcoming.begin()
    assert upcoming.take() is None
    maker.go.set()
    upcoming.drop(5)
    assert maker.lines[0].is_closed


def test_one_that_does_not_come_about_is_none(maker: Maker) -> None:
    upcoming = NextWorld(maker)
    upcoming.allow()
    upcoming.begin()
    maker.fails = True
    connected(upcoming, maker)
    assert upcoming.names is None
    assert upcoming.take() is None
