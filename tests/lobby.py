"""An elastic job on threads: workers that die, leave and join, and a lobby in the place of torchft's lighthouse."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tightwire.errors import TransportError
from tightwire.transport import Faulty, Single, Threads, Transport, Work
from tightwire.transport.door import Admission
from tightwire.transport.faulty import Fault, Send
from tightwire.transport.threads import Mailboxes, World


class DiedError(TransportError):
    """Ends a worker's thread; its servers' as the end of a channel does."""


@dataclass(frozen=True, kw_only=True)
class Die(Fault):
    """The worker dies in the place of a send: the first of its threads that sends, and then all of them.

    A process dies as a whole. A thread of it that only waits here cannot be ended, so its peers are told at once.
    """

    died: Callable[[], None]

    def strike(self, transport: Transport, send: Send) -> Work:
        self.died()
        raise DiedError


class Lobby:
    """Lets all in that live and have come, once nobody that lives in the world before is missing.

    Attributes:
        expected: how many that are new must come, too.
    """

    def __init__(self, deadline_s: float = 60.0) -> None:
        self.changed = threading.Condition()
        self.deadline_s = deadline_s
        self.living: set[str] = set()
        self.waiting: dict[str, Worker] = {}
        self.inside: tuple[str, ...] = ()
        self.number = 0
        self.expected = 0
        self.worlds: dict[int, tuple[World, tuple[str, ...]]] = {}

    def gone(self, name: str) -> None:
        with self.changed:
            self.living.discard(name)
            self.waiting.pop(name, None)
            for world, names in self.worlds.values():
                if name in names:
                    world.leave(names.index(name))
            self._admit()
            self.changed.notify_all()

    def admit(self, worker: Worker) -> Admission:
        with self.changed:
            self.living.add(worker.name)
            worker.admission = None
            self.waiting[worker.name] = worker
            self._admit()
            ends_s = time.monotonic() + self.deadline_s
            while worker.admission is None:
                assert self.changed.wait(ends_s - time.monotonic()), f"{worker.name} was not let in"
            return worker.admission

    def _admit(self) -> None:
        missing = self.living & set(self.inside) - set(self.waiting)
        new = self.waiting.keys() - set(self.inside)
        if missing or len(new) < self.expected or not self.waiting:
            return
        names = tuple(sorted(self.waiting))
        self.number, self.inside, self.expected = self.number + 1, names, 0
        world = World(len(names), self.deadline_s)
        self.worlds[self.number] = world, names
        boxes = Mailboxes(world, tuple(range(len(names))), world.left)
        for rank, name in enumerate(names):
            worker = self.waiting.pop(name)
            transport: Transport = Threads(rank, boxes)
            if worker.dies_at is not None:
                death = Die(rank=0, at_send=worker.dies_at, died=worker.die)
                transport = Faulty(transport, death, world_rank=0, sends=worker.sends)
            worker.admission = Admission(number=self.number, names=names, transport=transport)
        self.changed.notify_all()


class Worker:
    """The door of one worker, and how it ends."""

    def __init__(self, lobby: Lobby, name: str, dies_at: int | None) -> None:
        self.name, self.lobby, self.dies_at = name, lobby, dies_at
        self.watches, self.notice, self.is_dead = False, threading.Event(), False
        self.sends = itertools.count()
        self.rounds_told: list[int] = []
        self.silent: Callable[[], list[int]] = list  # whom it hears no more
        self.patience = 0  # how often it is told that the dead still count
        self.admission: Admission | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def die(self) -> None:
        self.is_dead = True
        self.lobby.gone(self.name)

    def enter(self, rounds: int) -> Admission:
        if self.is_dead:
            raise DiedError
        self.watches = False
        self.rounds_told.append(rounds)
        if self.admission is not None:  # the world before, which may not have come about
            self.admission.transport.close()
        return self.lobby.admit(self)

    def knocks(self) -> bool:
        return self.watches and bool(set(self.lobby.waiting) - set(self.lobby.inside))

    def counts(self, ranks: Sequence[int]) -> bool:
        self.patience -= 1
        return self.patience >= 0

    def gone(self) -> list[int]:
        return self.silent()

    def is_left_behind(self) -> bool:
        return False

    def connects(self) -> bool:
        return False

    def close(self) -> None:
        self.lobby.gone(self.name)


class Elastic:
    """Starts workers, some of which die; `join` waits for all and returns what those that lived returned."""

    def __init__(
        self, train: Callable[[Transport, Worker], Any], *, start: int, dies_at: Sequence[int | None]
    ) -> None:
        self.lobby = Lobby()
        self.lobby.expected = start
        self.replacing = threading.Lock()  # held from a death until another has come
        self.is_known = threading.Event()  # to who made it, whose functions the workers call
        self.train, self.workers, self.threads = train, list[Worker](), list[threading.Thread]()
        for number in range(start):
            self.start(dies_at[number] if number < len(dies_at) else None)

    def start(self, dies_at: int | None = None) -> Worker:
        worker = Worker(self.lobby, f"worker {len(self.workers)}", dies_at)
        thread = threading.Thread(target=self._run, args=(worker,), name=worker.name, daemon=True)
        self.workers.append(worker)
        self.threads.append(thread)
        thread.start()
        return worker

    def replace(self, victim: Worker) -> None:
        """Has another come in the moment in which this one dies: the others are let in together with it."""
        dies = victim.die

        def die() -> None:
            if not victim.is_dead:
                self.lobby.expected = 1
                with self.replacing:
                    dies()
                    self.start()

        victim.die = die  # type: ignore[method-assign]

    def join(self, timeout_s: float = 30.0) -> list[Any]:
        self.is_known.set()
        # Newcomers are appended meanwhile.
        for worker, thread in zip(self.workers, self.threads, strict=False):
            ends_s = time.monotonic() + timeout_s
            while not self._is_over(worker, thread):
                thread.join(0.05)
                assert time.monotonic() < ends_s, f"{thread.name} hangs"
        for worker in self.workers:
            if worker.error is not None:
                raise worker.error
        return [w.result for w in self.workers if w.result is not None and not w.is_dead]

    def _is_over(self, worker: Worker, thread: threading.Thread) -> bool:
        """Whether a worker has ended; what threads of the dead go on to wait for, no process would."""
        with self.replacing:
            return worker.is_dead or not thread.is_alive()

    def _run(self, worker: Worker) -> None:
        self.is_known.wait(0.5)
        try:
            worker.result = self.train(Single(door=worker), worker)
        except DiedError:
            pass
        except SystemExit:
            pass
        except BaseException as error:
            worker.error = None if worker.is_dead else error  # the dead are past caring
        self.lobby.gone(worker.name)
