"""The lighthouse's door, where nobody lets a worker in."""

from __future__ import annotations

import http.server
import threading
import time
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


def test_a_proxy_of_the_environment_is_not_asked_who_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'<li class="heartbeat ">{door.name}: seen just now'.encode())

        def log_message(self, *about: object) -> None:
            pass

    monkeypatch.setattr(Lighthouse, "_connect", lambda self: NamesBoth())
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        door = Lighthouse(address, min_workers=1, secret="", deadline_s=30.0, late_s=None)
        server.timeout = 20
        threading.Thread(target=server.handle_request, daemon=True).start()
        door._look()
    assert door._living == {door.name}
