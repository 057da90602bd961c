"""The lighthouse's door, where nobody lets a worker in."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tightwire.errors import PeerError
from tightwire.transport.lighthouse import Lighthouse


class NamesOthers:
    """A lighthouse's client: every quorum is of somebody else."""

    def quorum(self, *asked: Any, **place: Any) -> SimpleNamespace:
        time.sleep(0.01)
        return SimpleNamespace(participants=[SimpleNamespace(replica_id="somebody-1", step=3)])

    def heartbeat(self, *asked: Any) -> None:
        pass


def test_who_is_never_let_in_is_told_so_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lighthouse, "_connect", lambda self: NamesOthers())
    door = Lighthouse("http://127.0.0.1:1", min_workers=1, secret="", deadline_s=1.0, late_s=0.1)
    try:
        with pytest.raises(
            PeerError, match=r"found no world within 0.1 s: .* names somebody-1, and not this one"
        ):
            door.enter(0)
    finally:
        door.close()


def test_worlds_are_in_the_launchers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lighthouse, "_connect", lambda self: NamesOthers())
    names = []
    for rank in (0, 2, 10, 999):
        monkeypatch.setenv("RANK", str(rank))
        door = Lighthouse("http://127.0.0.1:1", min_workers=1, secret="", deadline_s=1.0, late_s=0.1)
        names.append(door.name)
        door.close()
    assert names == sorted(names)
