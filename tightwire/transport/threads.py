"""N workers in one process: for tests, teaching and the simulator's cross-checks."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, final

from tightwire.errors import PeerError, TransportError
from tightwire.transport.base import (
    DONE,
    Transport,
    Watch,
    Work,
    check_group,
    check_message,
    check_summable,
)
from tightwire.transport.blame import RankObserved, Verdict, Wait, accuse, describe, judge_gone, judge_late

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")


@final
class World:
    """What the threads of one world share: a lock, who waits for whom, and the first verdict.

    Attributes:
        changed: guards everything here and in every Mailboxes of this world.
    """

    def __init__(self, size: int, deadline_s: float) -> None:
        self.size = size
        self.deadline_s = deadline_s
        self.changed = threading.Condition()
        self.left: dict[int, str] = {}
        self._waits: dict[int, frozenset[int]] = {}
        self.notes: dict[int, str] = {}
        self.announced: dict[int, int] = {}
        self._verdict: Verdict | None = None

    def wait_for(
        self, rank: int, missing: Callable[[], frozenset[int]], what: str, left: Collection[int]
    ) -> None:
        """Blocks world rank `rank`, which holds `changed`, until no rank is missing; `left` may grow.

        Raises:
            PeerError: the deadline passed, a missing rank has left, or another rank's wait failed already.
        """
        ends_at = time.monotonic() + self.deadline_s
        while peers := missing():
            self._waits[rank] = peers
            gone = self.left.keys() | set(left)
            if peers & gone or time.monotonic() >= ends_at:
                self._decide(peers, gone)
            if self._verdict:
                raise self.accuse(rank, Wait(peers, what))
            self.changed.wait(max(0.0, ends_at - time.monotonic()))
        self._waits.pop(rank, None)

    def attend(
        self,
        rank: int,
        missing: Callable[[], frozenset[int]],
        left: Collection[int],
        given_up: Collection[int],
    ) -> bool:
        """Blocks world rank `rank`, which holds `changed`, until no rank is missing, however long it takes.

        Returns:
            False if a missing rank, or this one, has left, or a wait elsewhere has failed.
        """
        while peers := missing():
            if self._verdict or (peers | {rank}) & (self.left.keys() | {*left, *given_up}):
                return False
            self.changed.wait()
        return True

    def leave(self, rank: int, note: str = "") -> None:
        """Tells all waiting ranks that `rank` will send nothing more, and why if it failed."""
        with self.changed:
            self.left[rank] = self.left.get(rank) or note
            self.changed.notify_all()

    def tell(self, rank: int, note: str) -> None:
        """Notes why `rank` fails, of which those learn who wait for it once it has left."""
        with self.changed:
            self.notes[rank] = note

    def overdue(self, rank: int, wait: Wait) -> None:
        """Ends a wait that was made elsewhere and took longer than the deadline.

        Raises:
            PeerError: names who is late.
        """
        with self.changed:
            self._waits[rank] = wait.peers
            self._decide(wait.peers, self.left.keys())
            raise self.accuse(rank, wait)

    def accuse(self, rank: int, wait: Wait) -> PeerError:
        """Returns the error of `rank`, once there is a verdict."""
        assert self._verdict is not None
        return accuse(self._verdict, waiting=wait, deadline_s=self.deadline_s, rank=rank)

    @property
    def has_verdict(self) -> bool:
        """Whether some rank is to blame."""
        return self._verdict is not None

    def _decide(self, peers: frozenset[int], gone: Collection[int]) -> None:
        notes = {r: self.left.get(r) or self.notes.get(r, "") for r in gone}
        observed = RankObserved(waits=self._waits, left=notes)
        self._verdict = self._verdict or judge_gone(peers, observed) or judge_late(peers, observed)
        self.changed.notify_all()


@final
class Mailboxes:
    """The messages under way between the ranks of one channel or group.

    Attributes:
        world: shared by all channels.
        ranks: the world rank of each rank here.
        left: world ranks that closed this channel.
    """

    def __init__(self, world: World, ranks: tuple[int, ...], left: dict[int, str] | None = None) -> None:
        self.world = world
        self.ranks = ranks
        self.left: dict[int, str] = {} if left is None else left
        self.letters: dict[tuple[int, int, int, int], Tensor] = {}
        self.meetings: dict[int, dict[int, Any]] = defaultdict(dict)
        self._readers: dict[int, int] = defaultdict(int)

    def collect(self, rank: int, meeting: int, what: str) -> list[Any]:
        """Returns what every rank brought to a meeting, by rank, once all have; blocks."""
        brought = self.meetings[meeting]

        def missing() -> frozenset[int]:
            return frozenset(world for r, world in enumerate(self.ranks) if r not in brought)

        with self.world.changed:
            self.world.wait_for(self.ranks[rank], missing, what, self.left)
            self._readers[meeting] += 1
            if self._readers[meeting] == len(self.ranks):
                del self.meetings[meeting], self._readers[meeting]
            return [brought[r] for r in range(len(self.ranks))]


@final
class Threads(Transport):
    """One of several workers that are threads of one process; `run_threads` makes them.

    Sends copy, so they are complete at once. `all_reduce` adds in rank order, so results are the same bits on
    every rank and in every run.
    """

    native_dtypes = frozenset(
        {"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64"}
    )

    def __init__(self, rank: int, mailboxes: Mailboxes) -> None:
        self.rank = rank
        self.size = len(mailboxes.ranks)
        self.deadline_s = self.late_s = mailboxes.world.deadline_s
        self._mail = mailboxes
        self._world = mailboxes.world
        self._given_up: set[int] = set()
        self._meeting = itertools.count()
        self._sent: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._received: defaultdict[tuple[int, int], int] = defaultdict(int)

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Copies `tensor` into the mailbox of `dst`."""
        check_message(self, tensor, dst)
        self._check_open()
        with self._world.changed:
            self._mail.letters[self.rank, dst, tag, self._sent[dst, tag]] = (
                tensor.detach().reshape(-1).clone()
            )
            self._sent[dst, tag] += 1
            self._world.changed.notify_all()
        return DONE

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Reserves the next message of `src` with this tag; `wait` copies it out."""
        check_message(self, tensor, src)
        self._check_open()
        address = (src, self.rank, tag, self._received[src, tag])
        self._received[src, tag] += 1
        return _Receive(self, address, tensor)

    def all_reduce(self, tensor: Tensor) -> Work:
        """Brings a copy of `tensor`; `wait` adds all copies in rank order."""
        check_summable(self, tensor)
        return _Sum(self, self._bring(tensor.detach().clone()), tensor)

    def exchange(self, payload: bytes) -> list[bytes]:
        """Returns every rank's payload, by rank; blocks."""
        return self._meet(payload, "to exchange control data")

    def channel(self) -> Transport:
        """Returns a transport over the same ranks with mailboxes of its own."""
        boxes = self._meet(Mailboxes(self._world, self._mail.ranks), "for a channel to open")
        return Threads(self.rank, boxes[0])

    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Returns a transport over `ranks`, renumbered; None for ranks outside."""
        check_group(self, ranks)
        boxes = self._meet(
            Mailboxes(self._world, tuple(self._mail.ranks[r] for r in ranks)), "for a group to form"
        )
        return Threads(list(ranks).index(self.rank), boxes[0]) if self.rank in ranks else None

    def barrier(self) -> None:
        """Blocks until every rank has called it."""
        self._meet(None, "at a barrier")

    def watch(self, wait: Wait, *, ends_run: bool = False, is_first: bool = False) -> Watch:
        """Looks at the clock and, if that ends it, at who has left, when it is checked."""
        return _Watch(self, wait.numbered(self._mail.ranks), ends_run=ends_run)

    def fail(self, error: BaseException) -> None:
        """Leaves the reason for whoever is still waiting when this rank has left."""
        self._world.tell(self._mail.ranks[self.rank], f"{type(error).__name__}: {error}")

    def announce(self, number: int) -> None:
        """Notes the number where all see it."""
        with self._world.changed:
            self._world.announced[self._mail.ranks[self.rank]] = number

    def announced(self, rank: int) -> int:
        """Returns the number."""
        return self._world.announced.get(self._mail.ranks[rank], 0)

    def give_up(self, rank: int) -> None:
        """Takes the rank as one that has left this channel."""
        with self._world.changed:
            self._given_up.add(self._mail.ranks[rank])
            self._world.changed.notify_all()

    def close(self) -> None:
        """Leaves this channel or group; the world's own transport leaves all of them."""
        with self._world.changed:
            self._mail.left.setdefault(self._mail.ranks[self.rank], "")
            self._world.changed.notify_all()

    def _meet(self, value: Any, what: str) -> list[Any]:
        return self._mail.collect(self.rank, self._bring(value), what)

    def _bring(self, value: Any) -> int:
        self._check_open()
        meeting = next(self._meeting)
        with self._world.changed:
            self._mail.meetings[meeting][self.rank] = value
            self._world.changed.notify_all()
        return meeting

    def _check_open(self) -> None:
        if self._mail.ranks[self.rank] in self._mail.left | self._world.left:
            raise TransportError(
                f"rank {self.rank} uses its transport after close(); close it at the very end"
            )


@final
class _Watch:
    def __init__(self, owner: Threads, wait: Wait, *, ends_run: bool) -> None:
        self._world, self._rank, self._wait = owner._world, owner._mail.ranks[owner.rank], wait
        self._ends_run = ends_run
        self._ends_s = time.monotonic() + owner.deadline_s

    def check(self) -> None:
        is_due = (
            bool(self._wait.peers) and time.monotonic() > self._ends_s
        )  # who waits for nobody is never late
        is_gone = self._ends_run and bool(self._wait.peers & self._world.left.keys())
        if self._world.has_verdict or is_due or is_gone:
            self._world.overdue(self._rank, self._wait)

    def close(self) -> None:
        pass


@final
class _Receive:
    def __init__(self, owner: Threads, address: tuple[int, int, int, int], tensor: Tensor) -> None:
        self._mail, self._address, self._tensor = owner._mail, address, tensor
        self._given_up = owner._given_up
        self._done = False

    def wait(self) -> None:
        mail, (_, dst, tag, _) = self._mail, self._address
        what = describe("receive", self._tensor.nbytes, tag)
        with mail.world.changed:
            mail.world.wait_for(mail.ranks[dst], self._missing, what, mail.left)
            self._take()

    def attend(self) -> bool:
        mail = self._mail
        with mail.world.changed:
            arrived = mail.world.attend(
                mail.ranks[self._address[1]], self._missing, mail.left, self._given_up
            )
            if arrived:
                self._take()
        return arrived

    def _missing(self) -> frozenset[int]:
        is_here = self._done or self._address in self._mail.letters
        return frozenset() if is_here else frozenset({self._mail.ranks[self._address[0]]})

    def _take(self) -> None:
        if self._done:
            return
        letter = self._mail.letters.pop(self._address)
        src, dst, tag, _ = self._address
        if letter.nbytes != self._tensor.nbytes:
            what = describe("receive", self._tensor.nbytes, tag)
            raise TransportError(
                f"rank {dst} waited {what}, and rank {src} sent {letter.nbytes} bytes; sizes must agree"
            )
        self._tensor.detach().copy_(letter.view(self._tensor.dtype).view(self._tensor.shape))
        self._done = True


@final
class _Sum:
    def __init__(self, owner: Threads, meeting: int, tensor: Tensor) -> None:
        self._owner, self._meeting, self._tensor = owner, meeting, tensor
        self._done = False

    def wait(self) -> None:
        if self._done:
            return
        parts = self._owner._mail.collect(self._owner.rank, self._meeting, "for an all-reduce")
        total = self._tensor.detach()
        total.copy_(parts[0])
        for part in parts[1:]:
            total.add_(part)
        self._done = True

    def attend(self) -> bool:
        self.wait()
        return True


def run_threads(
    size: int, worker: Callable[[Transport], Result], *, deadline_s: float = 30.0
) -> list[Result]:
    """Runs `worker(transport)` on `size` threads and returns their results, by rank.

    A worker that returns or raises has left: whoever still waits for it ends with a PeerError. When workers
    raise, the exception that came first is raised here, preferring causes to the PeerErrors they provoke,
    with a note that names its rank. Threads that are stuck outside the transport are then abandoned.

    Args:
        size: number of workers.
        worker: called once on each thread; wrap its transport inside to count, shape or break it.
        deadline_s: the longest that a wait lasts.
    """
    world = World(size, deadline_s)
    mailboxes = Mailboxes(world, tuple(range(size)), world.left)
    results: dict[int, Result] = {}
    failures: list[tuple[int, BaseException]] = []
    first_failure_at: list[float] = []

    def run(rank: int) -> None:
        note = ""
        try:
            results[rank] = worker(Threads(rank, mailboxes))
        except BaseException as error:
            failures.append((rank, error))
            first_failure_at.append(time.monotonic())
            note = "" if isinstance(error, PeerError) else f"{type(error).__name__}: {error}"
        world.leave(rank, note)

    threads = [threading.Thread(target=run, args=(r,), name=f"rank {r}", daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not (
            first_failure_at and time.monotonic() > first_failure_at[0] + 2 * deadline_s
        ):
            thread.join(0.05 if first_failure_at else 0.2)
    if failures:
        rank, error = min(failures, key=lambda failure: isinstance(failure[1], PeerError))
        error.add_note(f"raised on rank {rank} of {size}")
        raise error
    return [results[rank] for rank in range(size)]
