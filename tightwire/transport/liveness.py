"""Who is alive, and what each rank waits for: a datagram socket and a sleeping thread in every process.

Nothing is sent while all goes well. When a wait fails, its rank calls the roll: every rank that lives answers
with whom it waits for, whatever its main thread does. The silent ones are to blame; if all answer, the chain of
waits leads to the late one. The verdict is then told to all, so that nobody sits out a deadline of their own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, final

from tightwire.errors import PeerError
from tightwire.transport.blame import Verdict, Wait, accuse, judge

GRACE_S: Final = 2.0
REPEAT_S: Final = 0.4
MAX_DATAGRAM_BYTES: Final = 65_507

Address = tuple[str, int]


@final
class Liveness:
    """This process's ear: answers the roll, hears verdicts, knows who left.

    Attributes:
        rank: this process, in the world.
        deadline_s: the longest that a wait lasts, the roll-call included.
        patience_s: what is left of it before the roll is called.
        waits: what this process waits for now, by any key of the waiter's.
        verdict: the ranks to blame, once known.
    """

    def __init__(self, rank: int, *, host: str | None, deadline_s: float) -> None:
        self.rank = rank
        self.deadline_s = deadline_s
        self.patience_s = deadline_s - min(GRACE_S, deadline_s / 3)
        self.waits: dict[object, Callable[[], Wait]] = {}
        self.verdict: Verdict | None = None
        self._token = ""
        self._has_left = False
        self._peers: dict[int, list[Address]] = {}
        self._left: dict[int, str] = {}
        self._answers: dict[int, list[int]] = {}
        self._heard = threading.Condition()
        self._on_verdict: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        port = self._socket.getsockname()[1]
        self.addresses: Final[list[Address]] = [(ip, port) for ip in own_addresses(host)]
        self._thread = threading.Thread(target=self._listen, name="tightwire liveness", daemon=True)
        self._thread.start()

    def meet(self, addresses: Mapping[int, Sequence[Address]], token: str) -> None:
        """Learns where the other ranks listen, and the word by which they know each other."""
        self._token = token
        self._peers = {
            rank: [(host, port) for host, port in where]
            for rank, where in addresses.items()
            if rank != self.rank
        }

    def on_verdict(self, wake: weakref.WeakMethod[Callable[[], None]]) -> None:
        """Has `wake` called once some rank is to blame, to end the waits under way in this process."""
        self._on_verdict.append(wake)

    def blame(self, wait: Wait) -> PeerError:
        """Returns the error for a wait that failed; calls the roll unless the verdict is known already.

        Contract: blocks for up to 2 s, while silent ranks have time to answer; tells the verdict to all.
        """
        if self.verdict is None:
            found = self._call_roll(wait)
            with self._heard:
                self.verdict = self.verdict or found
            self._tell({"verdict": [self.verdict.ranks, self.verdict.fault, self.verdict.note]})
            self._wake()
        return accuse(self.verdict, waiting=wait, deadline_s=self.deadline_s)

    def leave(self, note: str = "") -> None:
        """Tells all that this rank leaves, and why if it failed; stops listening. Again: does nothing."""
        if self._has_left:
            return
        self._has_left = True
        if self.verdict is None:
            self._tell({"left": note})
        with suppress(OSError):
            self._socket.sendto(self._pack({"stop": True}), ("127.0.0.1", self._socket.getsockname()[1]))
        self._thread.join(1.0)  # a thread inside Gloo while the interpreter ends would abort the process

    def leave_at_exit(self) -> None:
        """Leaves because the program ends, perhaps by an exception: then says which."""
        error = sys.__dict__.get("last_value")
        self.leave("" if error is None else f"{type(error).__name__}: {error}"[:500])

    def _call_roll(self, wait: Wait) -> Verdict:
        """Asks every rank what it waits for, and judges."""
        ends_at = time.monotonic() + self.deadline_s - self.patience_s
        with self._heard:
            while time.monotonic() < ends_at and self.verdict is None and (absent := self._absent()):
                self._send({"ask": True}, absent)
                self._heard.wait_for(lambda: self.verdict or not self._absent(), REPEAT_S)
            silent = self._absent()
            if self.verdict or (silent and not self._answers and not self._left):
                # Nobody at all answers: then silence proves nothing but that the awaited ranks do not answer.
                return self.verdict or Verdict(tuple(sorted(wait.peers)), "silent")
            waits = {**self._answers, self.rank: [*wait.peers]}
            return judge(self.rank, waits, silent=silent, left=self._left)

    def _absent(self) -> list[int]:
        return [rank for rank in self._peers if rank not in self._answers and rank not in self._left]

    def _listen(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(MAX_DATAGRAM_BYTES)
            message = self._unpack(data)
            if message is None:
                continue
            if "stop" in message and message["from"] == self.rank:
                self._socket.close()
                return
            self._hear(message, sender)

    def _hear(self, message: dict[str, Any], sender: Address) -> None:
        rank, condemned = int(message["from"]), False
        with self._heard:
            if "waits" in message:
                self._answers[rank] = [int(peer) for peer in message["waits"]]
            if "left" in message:
                self._left[rank] = str(message["left"])
            if "verdict" in message and self.verdict is None:
                ranks, fault, note = message["verdict"]
                self.verdict = Verdict(tuple(int(r) for r in ranks), fault, str(note))
                condemned = True
            self._heard.notify_all()
        if "ask" in message:
            with suppress(OSError):
                self._socket.sendto(self._pack(self._answer()), sender)
        if condemned:
            self._wake()

    def _answer(self) -> dict[str, Any]:
        if self.verdict is not None:
            return {"verdict": [self.verdict.ranks, self.verdict.fault, self.verdict.note]}
        peers = {peer for describe in list(self.waits.values()) for peer in describe().peers}
        return {"waits": sorted(peers)}

    def _wake(self) -> None:
        for method in self._on_verdict:
            if wake := method():
                wake()

    def _tell(self, message: dict[str, Any]) -> None:
        for _ in range(2):  # a datagram may be lost; hearing it twice is harmless
            self._send(message, self._peers)

    def _send(self, message: dict[str, Any], ranks: Sequence[int] | Mapping[int, Any]) -> None:
        data = self._pack(message)
        for rank in ranks:
            for address in self._peers[rank]:
                with suppress(OSError):
                    self._socket.sendto(data, address)

    def _pack(self, message: dict[str, Any]) -> bytes:
        return json.dumps({**message, "token": self._token, "from": self.rank}).encode()

    def _unpack(self, data: bytes) -> dict[str, Any] | None:
        """Returns a message of this world; None for anything else that reached the port."""
        try:
            message = json.loads(data)
        except ValueError:
            return None
        ours = isinstance(message, dict) and message.get("token") == self._token
        return message if ours and isinstance(message.get("from"), int) else None


def own_addresses(host: str | None) -> list[str]:
    """Returns the IPv4 addresses under which peers may reach this process, likeliest first.

    Args:
        host: where the rendezvous is, if it is known: the route to it is the likeliest.
    """
    targets = [host] if host else []
    routes = [_route_to(target) for target in [*targets, "192.0.2.1"]]  # TEST-NET: the default route
    named = [_interface_address(name) for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    found = dict.fromkeys(address for address in [*routes, *named] if address)
    return list(found) or ["127.0.0.1"]


def _route_to(host: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((host, 9))  # sends nothing: a datagram socket only looks up its route
        return str(probe.getsockname()[0])
    return None


def _interface_address(name: str) -> str | None:
    import fcntl
    import struct

    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        answer = fcntl.ioctl(probe.fileno(), siocgifaddr, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    return None
