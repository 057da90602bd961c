"""The lighthouse's door, where nobody lets a worker in."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from tightwire.errors import PeerError
from tightwire.transport import lighthouse
from tightwire.transport.join import within
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


class NamesBoth:
    """A lighthouse's client: every quorum is of the worker that asks and of one that does not come."""

    def quorum(self, name: str, *limit: Any, store_address: str, step: int) -> SimpleNamespace:
        members = [
            SimpleNamespace(replica_id=name, step=1, store_address=store_address),
            SimpleNamespace(replica_id="somebody-1", step=1),
        ]
        made = SimpleNamespace(seconds=0, nanos=0)
        return SimpleNamespace(quorum_id=1, participants=members, created=made)

    def heartbeat(self, *asked: Any) -> None:
        pass


def test_who_still_waits_for_a_lost_world_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo waits for addresses of the dead on a thread that cannot be ended; the store's host meets again meanwhile."""
    waiting: list[threading.Thread] = []

    def join(store: Any, *place: Any, **limits: Any) -> SimpleNamespace:
        if not waiting:
            waiting.append(threading.Thread(target=store.wait, args=(["address"],)))
            waiting[0].start()
            time.sleep(0.1)
            raise PeerError("somebody-1 has died", [1])
        within(10.0, lambda: store.set("here", ""), is_host=True)
        assert waiting[0].is_alive()
        return SimpleNamespace(num_channels=0, close=lambda: store.set("address", ""))

    monkeypatch.setattr(Lighthouse, "_connect", lambda self: NamesBoth())
    monkeypatch.setattr(lighthouse, "join", join)
    monkeypatch.delattr(dist.Store, "clone", raising=False)  # torch has it since 2.8
    door = Lighthouse("http://127.0.0.1:1", min_workers=1, secret="", deadline_s=60.0, late_s=60.0)
    assert len(door.enter(1).names) == 2
    door.close()  # here it writes what the thread waits for
    waiting[0].join(10.0)
    assert not waiting[0].is_alive()


class Page(http.server.BaseHTTPRequestHandler):
    """The lighthouse's page of who beats."""

    def do_GET(self) -> None:
        """Shows the server's `text`, once it may."""
        self.server.may_answer.wait(60)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.text.encode())  # type: ignore[attr-defined]

    def log_message(self, *about: object) -> None:
        """Logs nothing."""


@contextlib.contextmanager
def page() -> Iterator[Any]:
    """Serves the page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        server.may_answer, server.text = threading.Event(), ""  # type: ignore[attr-defined]
        server.may_answer.set()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.may_answer.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()


def door_at(server: Any, deadline_s: float = 60.0) -> Lighthouse:
    """Returns a worker's door at the lighthouse whose page is served."""
    address = f"http://127.0.0.1:{server.server_port}"
    return Lighthouse(address, min_workers=1, secret="", deadline_s=deadline_s, late_s=None)


def test_a_proxy_of_the_environment_is_not_asked_who_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lighthouse, "_connect", lambda self: NamesBoth())
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with page() as server:
        door = door_at(server)
        server.text = f'<li class="heartbeat ">{door.name}: seen just now'
        door._look()
    assert door._living == {door.name}


def test_a_worker_beats_while_its_look_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the others take it for dead, and go on without it, for a page that comes late."""
    beats = threading.Semaphore(0)

    class Beats(NamesBoth):
        def heartbeat(self, *asked: Any) -> None:
            beats.release()

    monkeypatch.setattr(Lighthouse, "_connect", lambda self: Beats())
    monkeypatch.setattr(Lighthouse, "_look_after_s", lambda self: 0.0)
    with page() as server:
        door = door_at(server)
        asked = threading.Event()
        server.may_answer.clear()
        looks = door._look

        def look() -> None:
            asked.set()
            monkeypatch.setattr(lighthouse, "ANSWER_S", 60.0)
            looks()

        monkeypatch.setattr(door, "_look", look)
        door._begin_to_beat()
        try:
            assert asked.wait(60)
            assert all(beats.acquire(timeout=60) for _ in range(10))
            assert door._living is None  # the look still waits
        finally:
            server.may_answer.set()
            door.close()


def test_who_was_silent_before_members_met_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has come back, or the lighthouse would not have named it."""
    monkeypatch.setattr(Lighthouse, "_connect", lambda self: NamesBoth())
    door = Lighthouse("http://127.0.0.1:1", min_workers=1, secret="", deadline_s=1.0, late_s=None)
    door._silent = frozenset({"somebody-1"})
    quorum = NamesBoth().quorum("rank-0", store_address=door._place, step=1)
    door.name = "rank-0"
    with pytest.raises(PeerError, match=r"rank 1 did not join within 1 s, of a world of 2"):
        door._meet(quorum, ("rank-0", "somebody-1"))


def test_who_dies_while_members_meet_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lighthouse, "_connect", lambda self: NamesBoth())
    with page() as server:
        door = door_at(server, deadline_s=10_000.0)
        door.name = "rank-0"  # of a quorum, the first by name
        server.text = "".join(
            f'<li class="heartbeat {old}">{name}: seen just now'
            for name, old in ((door.name, ""), ("somebody-1", "old"), ("somebody-0", "old"))
        )
        quorum = NamesBoth().quorum(door.name, store_address=door._place, step=1)
        door._begin_to_beat()
        try:
            with pytest.raises(
                PeerError, match=r"rank 1 died while the workers met, of a world of 2"
            ) as caught:
                door._meet(quorum, (door.name, "somebody-1"))
        finally:
            door.close()
    assert caught.value.ranks == (1,)
