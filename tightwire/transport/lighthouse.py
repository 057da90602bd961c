"""torchft's lighthouse as the door of an elastic job: it hears who lives, and says who is in.

Each worker tells it every `BEAT_S` that it lives. When the members of a world want another one, because somebody died,
left or waits outside, each asks for a quorum; the lighthouse answers all at once, when all that live have asked.
A member whose beats it has not heard for a while is gone for those that wait for it, whatever their deadline is.
Members then meet at a store of the first one's, under the quorum's own prefix, so that the death of any worker, also
of the first, ends no job. Each looks now and then whom the lighthouse hears: when somebody came or went, members
connect the next world on threads while they train on in the old one, and enter it with a round's end. The lighthouse
itself may not die: without it nobody can enter and no death be survived, though training goes on until then.

Run as a program (`python -m tightwire.transport.lighthouse --port 29510`) it is a lighthouse; so is torchft's own
`torchft_lighthouse --min_replicas 1 --heartbeat_timeout_ms 1000 --join_timeout_ms 5000`.

Source: torchft 0.2.0, github.com/meta-pytorch/torchft, src/lighthouse.rs.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import logging
import math
import os
import re
import secrets
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Final, final
from urllib.parse import urlsplit

import torch.distributed as dist

from tightwire.errors import PeerError, TransportError
from tightwire.transport.addresses import own_address
from tightwire.transport.ahead import ConnectedWorld, NextWorld
from tightwire.transport.base import Transport
from tightwire.transport.door import Admission
from tightwire.transport.helpers import leave
from tightwire.transport.join import join, within
from tightwire.transport.launch import told_rank
from tightwire.transport.torch_distributed import TorchDistributed

c10d: Final[Any] = dist  # torch does not type its stores
VARIABLE: Final = "TORCHFT_LIGHTHOUSE"  # torchft's own name for its address
BEAT_S: Final = 0.1
ANSWER_S: Final = 1.0  # within which the lighthouse answers a beat or a look
LOOK_S: Final = 1.0
# Without a beat for so long, a worker is dead; so long the others wait for one that lives and does not ask.
DEAD_MS: Final = 1000
# Members ask as they notice a change, within a look of each other; whoever has not asked by then is left out, and comes
# back as a newcomer.
JOIN_MS: Final = 5000
# Who waits for so long asks the lighthouse whom it hears; of many, each asks less often.
WAITED_S: Final = 0.2
ASK_S_PER_MEMBER: Final = 0.02
# A dead member that is still taken for living after so long: the lighthouse does not hear either.
COUNTED_S: Final = 10.0
# So long a thread that connects the next world asks, which is until it has an answer; and so long newcomers wait for it
# before members let them in without.
NEXT_S: Final = 6.0
# Channels that are connected with a world, for the engines: as many as were asked for in the world before, at most.
MOST_CHANNELS: Final = 4
# A page of the lighthouse: who beats at present. Its client has no call for it.
_BEATS: Final = re.compile(r'<li class="heartbeat\s*(old)?\s*">\s*(\S+): seen')
# By no proxy of the environment's, as torchft's client goes.
_directly: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))

log = logging.getLogger("tightwire")


@final
class Lighthouse:
    """The door of one worker; see `Door`.

    Attributes:
        name: the launcher's rank, host, process, and a number of its own. Worlds are in the order of names, so that
            ranks are the launcher's while all its workers are in.
        watches: whether this worker looks for those who wait outside; one of a world does.
        notice: set once this worker is to leave.
    """

    def __init__(
        self,
        address: str,
        *,
        min_workers: int,
        secret: str,
        deadline_s: float,
        late_s: float | None,
        wrap: Callable[[Transport], Transport] = lambda world: world,
    ) -> None:
        """Finds the lighthouse; nobody is told yet that this worker lives.

        Args:
            address: as in "http://host:29510".
            min_workers: how many must have come before any trains.
            secret: the job's; "" for none.
            deadline_s: see `init`.
            late_s: see `init`.
            wrap: what is to be between this worker and each world.

        Raises:
            TransportError: torchft is not installed, or there is no lighthouse at the address.
        """
        process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.name = f"{told_rank(os.environ):06d}-{process}"
        self._address, self._min_workers = address, min_workers
        self._secret, self._deadline_s, self._late_s = secret, deadline_s, late_s
        self._wrap = wrap
        self._host = urlsplit(address).hostname or ""
        self._client = self._connect()
        mine = own_address(self._host)
        self._store = c10d.TCPStore(
            mine, 0, None, True, timedelta(seconds=deadline_s), wait_for_workers=False
        )
        self._place = f"{mine}:{self._store.port}"
        self._world: TorchDistributed | None = None
        self._names: tuple[str, ...] = ()
        self._channels = 0  # that the engine asked for
        self._next = NextWorld(self._connect_next)
        self._meeting: frozenset[str] = frozenset()  # who meets at present, or did last
        self._living: frozenset[str] | None = None  # as of the last look; None: not since somebody was lost
        self._lost_s: float | None = None  # when somebody was
        self._silent: frozenset[str] = frozenset()  # of all that ever were, as of the last look
        self._knocked_s: float | None = None  # since when somebody waits outside
        self.watches = False
        self.notice = threading.Event()
        self._looked_s = time.monotonic()
        self._is_told = False  # that the lighthouse does not answer
        self._ended = threading.Event()
        self._threads: tuple[threading.Thread, ...] = ()

    def enter(self, rounds: int) -> Admission:
        """Takes the next world if it is connected, else asks for a quorum until all its members have met."""
        self.watches = False
        self._close_world()
        self._begin_to_beat()
        limit_s = self._late_s or 20 * self._deadline_s
        ends_s, seen = time.monotonic() + limit_s, ""
        while self._next.is_under_way and not self._silent & self._meeting:
            time.sleep(LOOK_S / 50)
        entered = self._next.take()
        if entered is not None and self._silent & set(entered.names):  # somebody has died since
            entered.transport.close()
            entered = None
        while entered is None:
            if seen and time.monotonic() > ends_s:
                raise PeerError(f"this worker ({self.name}) found no world within {limit_s:g} s: {seen}", [])
            entered, why = self._try_to_enter(self._ask(rounds, ends_s), ends_s)
            seen = why or seen
        self._world, self._names = entered.transport, entered.names
        self._living = self._lost_s = self._knocked_s = None
        self._silent = self._meeting = frozenset()
        self._next.allow()
        return Admission(number=entered.number, names=entered.names, transport=self._wrap(entered.transport))

    def knocks(self) -> bool:
        """Tells it once the world with whoever waits is connected, or does not come about; the first member alone."""
        since = self._knocked_s
        if not self.watches or since is None:
            return False
        has_newcomers = bool(set(self._next.names or ()) - set(self._names))
        return has_newcomers or time.monotonic() - since > 2 * NEXT_S

    def counts(self, ranks: Sequence[int]) -> bool:
        """Tells what the beating thread saw since it was first asked; while the next world is connected, too."""
        now = time.monotonic()
        if self._lost_s is None:
            self._living, self._lost_s = None, now
        if self._ended.is_set() or now - self._lost_s > COUNTED_S or self.is_left_behind():
            return False
        living = self._living
        return living is None or any(self._names[rank] in living for rank in ranks) or self.connects()

    def gone(self) -> list[int]:
        """Tells what the beating thread saw last."""
        return self._silent_among(self._names)

    def is_left_behind(self) -> bool:
        """Tells what the world's datagrams said."""
        world = self._world
        return world is not None and world.is_left_behind

    def connects(self) -> bool:
        """Whether the thread for it runs."""
        return self._next.is_under_way

    def close(self) -> None:
        """Ends the beats, and leaves the world, also the next."""
        self._stop_beating()
        self._close_world()

    def _try_to_enter(self, quorum: Any, ends_s: float) -> tuple[ConnectedWorld | None, str]:
        """Returns the quorum's world, or why it did not come about; "" where it only was too early."""
        members = list(quorum.participants)
        names = tuple(member.replica_id for member in members)
        if self.name not in names:
            named = ", ".join(names) or "nobody"
            return None, f"the lighthouse at {self._address} names {named}, and not this one."
        if len(names) < self._min_workers and not any(member.step for member in members):
            if time.monotonic() > ends_s:
                raise PeerError(
                    f"{len(names)} workers came to the lighthouse at {self._address}, and min_workers is "
                    f"{self._min_workers}: the others never started, or have ended already.",
                    [],
                )
            time.sleep(BEAT_S)  # nobody trains yet, and some are still to come
            return None, ""
        try:
            world = self._meet(quorum, names)
        except PeerError as error:
            log.info("a world of %d did not come about: %s", len(names), error)
            return None, f"the last, of {len(names)}, did not come about: {error}"
        return ConnectedWorld(int(quorum.quorum_id), names, world), ""

    def _connect_next(self) -> ConnectedWorld | None:
        """Asks for the world after the present one; no member is to have gone on without this one while it asks."""
        limit = timedelta(seconds=NEXT_S)
        self._meeting = frozenset()
        quorum = self._client.quorum(self.name, limit, store_address=self._place, step=1)
        return self._try_to_enter(quorum, math.inf)[0]

    def _ask(self, rounds: int, ends_s: float) -> Any:
        while True:
            try:
                return self._client.quorum(
                    self.name, timedelta(seconds=self._deadline_s), store_address=self._place, step=rounds
                )
            except (RuntimeError, TimeoutError) as error:
                if time.monotonic() > ends_s:
                    raise PeerError(
                        f"no other worker let this one in ({self.name}): the lighthouse at {self._address} is down, or "
                        f"the others are in a step that does not end ({error}). Look at its log.",
                        [],
                    ) from error
                time.sleep(BEAT_S)

    def _meet(self, quorum: Any, names: tuple[str, ...]) -> TorchDistributed:
        host, _, port = quorum.participants[0].store_address.rpartition(":")
        limit = timedelta(seconds=self._deadline_s)
        place = (host, int(port), None, False, limit)
        # Each world has a connection of its own, also where this worker keeps the store itself: a thread that was left
        # behind in a world that did not come about waits for long, and keeps its connection for itself meanwhile.
        try:
            store = within(
                self._deadline_s,
                lambda: c10d.TCPStore(*place, wait_for_workers=False, multi_tenant=True),
                is_host=names[0] == self.name,
            )
        except dist.DistError as error:
            raise PeerError(
                f"rank 0 does not answer at {host}:{port}, where the workers meet: {error}", [0]
            ) from error
        # The same members may meet again under the same number, so the moment of the decision is part of the prefix.
        made = quorum.created
        store = c10d.PrefixStore(f"quorum/{quorum.quorum_id}/{made.seconds}.{made.nanos}", store)
        rank, size = names.index(self.name), len(names)
        self._meeting, before = frozenset(names), self._silent  # who was silent then may have come back
        world = join(
            store,
            rank,
            size,
            host=self._host,
            secret=self._secret,
            deadline_s=self._deadline_s,
            late_s=self._late_s,
            channels=self._count_channels(),
            gone=lambda: self._silent_among(names) if self._silent is not before else (),
            is_one_of_many=True,
        )
        world.frees_behind = True
        return world

    def _count_channels(self) -> int:
        """Returns how many channels the next world is to have from the beginning."""
        if (world := self._world) is not None:  # which another thread may leave just now
            self._channels = min(world.num_channels, MOST_CHANNELS)
        return self._channels

    def _close_world(self) -> None:
        if self._world is not None:
            self._count_channels()
            self._world.close()
            self._world = None

    def _connect(self) -> Any:
        limit = timedelta(seconds=self._deadline_s)
        try:
            return native().LighthouseClient(self._address, limit)
        except (RuntimeError, TimeoutError) as error:
            raise TransportError(
                f"asked the lighthouse at {self._address} ({VARIABLE}) for a place in the job, and it does not answer: "
                f"{error}. Start it (python -m tightwire.transport.lighthouse), or mend the address."
            ) from error

    def _silent_among(self, names: Sequence[str]) -> list[int]:
        silent = self._silent
        return [rank for rank, name in enumerate(names) if name in silent] if silent else []

    def _begin_to_beat(self) -> None:
        if not self._threads:
            # A look may wait for a second, in which no beat would be told, and this worker be taken for dead.
            acts = {"tightwire heartbeat": self._beat, "tightwire looks": self._look_if_due}
            self._threads = tuple(
                threading.Thread(target=self._repeat, args=(act,), name=name, daemon=True)
                for name, act in acts.items()
            )
            for thread in self._threads:
                thread.start()
            atexit.register(self._stop_beating)

    def _stop_beating(self) -> None:
        """Ends the beats and waits for the last: a thread in native code aborts an interpreter that ends."""
        self._ended.set()
        if self._threads:
            atexit.unregister(self._stop_beating)
            for thread in self._threads:
                leave(thread, after_s=2 * ANSWER_S)  # a beat has a limit of its own
        self._next.drop(NEXT_S)

    def _repeat(self, act: Callable[[], None]) -> None:
        """Asks the lighthouse again and again, until this worker leaves."""
        while not self._ended.is_set():
            try:
                act()
            except Exception as error:  # whatever it is: a thread that ended would make this worker look dead
                self._living = frozenset()
                if not self._is_told:
                    self._is_told = True
                    log.warning(
                        "the lighthouse at %s does not answer (%s): training goes on, but until it does nobody can "
                        "join, and no death is survived.",
                        self._address,
                        error,
                    )
            self._ended.wait(BEAT_S)

    def _beat(self) -> None:
        self._client.heartbeat(self.name, timedelta(seconds=ANSWER_S))
        self._is_told = False

    def _look_if_due(self) -> None:
        if (now := time.monotonic()) - self._looked_s > self._look_after_s():
            self._looked_s = now
            self._look()

    def _look_after_s(self) -> float:
        """Returns after how long this worker looks again whom the lighthouse hears."""
        world, asking = self._world, max(len(self._names), len(self._meeting))
        often_s = max(BEAT_S / 2, ASK_S_PER_MEMBER * asking)
        if world is None:
            return often_s if self._meeting or self._next.is_under_way else math.inf
        return often_s if self._lost_s is not None or world.waited_s > WAITED_S else max(LOOK_S, often_s)

    def _look(self) -> None:
        """Looks whom the lighthouse hears: newcomers, and members that are silent."""
        with _directly.open(f"{self._address}/status", timeout=ANSWER_S) as page:
            text = page.read(1 << 20).decode(errors="replace")
        heard = _BEATS.findall(text)
        living = frozenset(name for old, name in heard if not old)
        world, names = self._world, self._names
        if self.name not in living:  # it may be the lighthouse that was stopped
            return
        silent = frozenset(name for old, name in heard if old)
        came = living - set(names)
        if not came:
            self._knocked_s = None
        elif self._knocked_s is None:
            self._knocked_s = time.monotonic()
        if self._names != names:
            return
        members = set(self._next.names or names)
        if world is not None and (living - members or silent & members):
            self._next.begin()
        self._living, self._silent = living, silent
        if world is not None and (gone := self.gone()):
            world.hear_silent(gone)


def native() -> ModuleType:
    """Returns the part of torchft that is the lighthouse and its client; the rest of it takes seconds to import.

    Raises:
        TransportError: torchft is not installed.
    """
    os.environ.setdefault("RUST_LOG", "warn")  # else it logs every quorum
    package = importlib.util.find_spec("torchft")
    places = package.submodule_search_locations if package is not None else None
    for place in places or ():
        for file in Path(place).glob("_torchft*.so"):
            spec = importlib.util.spec_from_file_location("torchft._torchft", file)
            if spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise TransportError(
        "elastic=True lets torchft's lighthouse say who is in, and torchft is not installed: "
        "pip install 'tightwire[ft]'."
    )


def serve(bind: str, *, dead_ms: int = DEAD_MS, join_ms: int = JOIN_MS) -> Any:
    """Starts a lighthouse in this process; it ends with what is returned.

    Args:
        bind: as in "0.0.0.0:29510".
        dead_ms: without a beat for so long, a worker is dead.
        join_ms: so long the others wait for one that lives and does not ask.
    """
    return native().LighthouseServer(
        bind=bind, min_replicas=1, join_timeout_ms=join_ms, quorum_tick_ms=20, heartbeat_timeout_ms=dead_ms
    )


def main() -> None:
    """Is a lighthouse until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A lighthouse: says who is in an elastic job.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=29510)
    parser.add_argument(
        "--dead-ms", type=int, default=DEAD_MS, help="without a beat for so long, a worker is dead"
    )
    parser.add_argument(
        "--join-ms",
        type=int,
        default=JOIN_MS,
        help="so long the others wait for one that lives and does not ask",
    )
    options = parser.parse_args()
    serving = serve(f"{options.host}:{options.port}", dead_ms=options.dead_ms, join_ms=options.join_ms)
    print(f"lighthouse: {serving.address()}", flush=True)
    with suppress(KeyboardInterrupt):
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serving.shutdown()


if __name__ == "__main__":
    main()
