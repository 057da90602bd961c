"""Joining the world: where workers meet, who came, and at which addresses they listen."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist

from tightwire.devices import DEVICES
from tightwire.errors import MismatchError, PeerError, TransportError
from tightwire.transport.addresses import Candidates, choose, interface_of, is_local, own_candidates
from tightwire.transport.blame import Wait, name_ranks
from tightwire.transport.helpers import leave
from tightwire.transport.launch import Launch
from tightwire.transport.liveness import Liveness
from tightwire.transport.seal import Seal, fingerprint
from tightwire.transport.torch_distributed import TorchDistributed, guarded

c10d: Final[Any] = dist  # torch does not type its stores
_generations = itertools.count()  # every process joins equally often, so their prefixes agree
MAX_CARD_BYTES: Final = 4096
ABSENT: Final = "absent"
# Who waits for the others' cards looks so often whether somebody is known to be absent; of many, each less often.
LOOK_S: Final = 0.25
LOOK_S_PER_RANK: Final = 0.01


def is_initialized() -> bool:
    """Tells whether the program has joined torch.distributed itself."""
    return dist.is_available() and dist.is_initialized()


def join_initialized(
    *, host: str | None, secret: str, attempt: int, deadline_s: float, late_s: float | None
) -> TorchDistributed:
    """Makes the transport of a program that has joined torch.distributed itself.

    Contract: all ranks; blocks until the last one comes.

    Args:
        host: where the workers meet, if it is known.
        secret: the job's; "" for none.
        attempt: of the launcher, whose store may outlive one, with the addresses of its dead.
        deadline_s: the longest that a rank may be silent, or not come.
        late_s: the longest that a rank that is alive may be waited for.

    Raises:
        PeerError: names the ranks that did not come in time.
        MismatchError: names the ranks that have another secret or another system.
    """
    prefix = f"attempt{attempt}/{next(_generations)}"
    store = c10d.PrefixStore(prefix, dist.distributed_c10d._get_default_store())
    size = dist.get_world_size()
    return join(store, dist.get_rank(), size, host=host, secret=secret, deadline_s=deadline_s, late_s=late_s)


def join_launched(
    launch: Launch, *, secret: str, deadline_s: float, late_s: float | None
) -> TorchDistributed:
    """Makes the transport of a program started by a launcher, and initialises torch.distributed beside it.

    Contract: all ranks; blocks until the last one comes.

    Raises:
        PeerError: names the ranks that did not come in time.
        MismatchError: names the ranks that have another secret or another system.
        TransportError: the rendezvous is impossible: its port is taken, or its host has no address.
    """
    # A store that the launcher keeps outlives an attempt, with the addresses of its dead.
    prefix = f"attempt{launch.attempt}/{next(_generations)}"
    store = c10d.PrefixStore(prefix, rendezvous(launch, deadline_s=deadline_s))
    rank, size = launch.rank, launch.size
    transport = join(store, rank, size, host=launch.host, secret=secret, deadline_s=deadline_s, late_s=late_s)

    def initialise() -> None:
        backend = "cpu:gloo,cuda:nccl" if DEVICES["cuda"].count() else "gloo"
        timeout = timedelta(seconds=transport.late_s)
        with _interface_for_torch(transport._liveness.address[0]):
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)

    peers = frozenset(range(size)) - {rank}
    try:
        guarded(transport._liveness, initialise, Wait(peers, "for torch.distributed to be initialised"))
        transport.barrier()  # rank 0, which may keep the store, does not leave before all are through
    except BaseException:
        transport.close()
        raise
    return transport


def join(
    store: Any,
    rank: int,
    size: int,
    *,
    host: str | None,
    secret: str = "",
    deadline_s: float,
    late_s: float | None = None,
    channels: int = 0,
    gone: Callable[[], Collection[int]] = tuple,
    is_one_of_many: bool = False,
) -> TorchDistributed:
    """Makes the world's transport once all ranks have come.

    Args:
        store: any torch.distributed store, under a prefix that no other world has.
        rank: this process.
        size: number of processes.
        host: where the store is, if it is known.
        secret: the job's; "" for none, and then whoever reads the store can speak for the job.
        deadline_s: the longest that a rank may be silent, or not come.
        late_s: the longest that a rank that is alive may be waited for; by default 20 deadlines.
        channels: how many this rank will want; as many as any wants are connected with the world.
        gone: tells the ranks that are known to be dead by now: who did not come before need not be waited for.
        is_one_of_many: whether the store sees many worlds, and is to forget each one's cards.

    Raises:
        PeerError: names the ranks that did not come in time.
        MismatchError: names the ranks that have another secret or another system.
    """
    own = c10d.PrefixStore("tightwire", store)
    meeting = _Meeting(own, rank, size, Seal(secret, "meeting"), fingerprint(secret), deadline_s, gone)
    cards = meeting.exchange(
        "here",
        {
            "system": _system(),
            "nonce": secrets.token_hex(8),
            "at": own_candidates(host).to_dict(),
            "channels": channels,
        },
    )
    _require_one_system([str(card["system"]) for card in cards])
    address = choose([Candidates(**card["at"]) for card in cards], rank)
    liveness = Liveness(rank, host=address, deadline_s=deadline_s, late_s=late_s)
    try:
        listening = meeting.exchange("listens", {"address": list(liveness.address)})
        nonce = ",".join(str(card["nonce"]) for card in cards)
        addresses = {
            r: (str(there["address"][0]), int(there["address"][1])) for r, there in enumerate(listening)
        }
        liveness.meet(addresses, Seal(secret, nonce))
        transport = TorchDistributed(own, rank, range(size), liveness, is_root=True)
        try:
            transport.stock(max(int(card["channels"]) for card in cards))
        except BaseException:
            transport.close()
            raise
    except BaseException:
        liveness.leave()
        raise
    if is_one_of_many and rank == 0:
        meeting.forget()  # all have connected, and so have read everything
    atexit.register(transport.leave_at_exit)
    return transport


def rendezvous(launch: Launch, *, deadline_s: float) -> Any:
    """Returns the store where the workers meet: rank 0 listens unless the launcher does.

    Raises:
        TransportError: the port is taken, the host has no address, or it is not rank 0's.
        PeerError: rank 0 does not listen.
    """
    where = f"{launch.host}:{launch.port}"
    ends_at = time.monotonic() + deadline_s
    _require_address(launch, ends_at)
    listens = launch.rank == 0 and not launch.agent_hosts
    while not listens and not _is_listening(launch):
        if time.monotonic() > ends_at:
            raise _no_answer(deadline_s)
        time.sleep(0.02)
    place = (launch.host, launch.port, launch.size, listens, timedelta(seconds=deadline_s))
    try:
        return within(deadline_s, lambda: c10d.TCPStore(*place, wait_for_workers=False, multi_tenant=True))
    except (dist.DistError, PeerError) as error:
        if not listens:
            raise _no_answer(deadline_s) from error
        if not is_local(launch.host):
            raise TransportError(
                f"this is rank 0, asked to listen for the others at MASTER_ADDR {launch.host}, which is no address of "
                "this host and leads to nobody: set MASTER_ADDR to rank 0's host on all."
            ) from error
        raise TransportError(
            f"asked to listen at {where} for the other workers; the port is taken, or the address is not of "
            f"this machine: set MASTER_PORT to a free port ({error})"
        ) from error


def _require_address(launch: Launch, ends_at: float) -> None:
    """Waits for a name server that cannot answer yet, as one of containers that have only just begun."""
    while True:
        try:
            socket.getaddrinfo(launch.host, launch.port)
        except OSError as error:
            if error.errno == socket.EAI_AGAIN and time.monotonic() < ends_at:
                time.sleep(0.1)
                continue
            raise TransportError(
                f"asked to meet at {launch.host}:{launch.port}; that host has no address: {error}"
            ) from error
        return


def _is_listening(launch: Launch) -> bool:
    """Tells whether anybody listens yet: cheaper to ask, and to give up, than torch's store is."""
    with suppress(OSError), socket.create_connection((launch.host, launch.port), timeout=1.0):
        return True
    return False


@dataclass(frozen=True)
class Absent:
    """Who did not come to a meeting, and whether that is because they are known to be dead."""

    ranks: list[int]
    are_dead: bool

    @classmethod
    def of(cls, data: bytes, size: int) -> Absent | None:
        """Reads what a rank of so many told; None for whatever is nothing like it, however malformed."""
        with suppress(ValueError, TypeError, RecursionError):
            absent = cls(**json.loads(data))
            if type(absent.are_dead) is bool and isinstance(absent.ranks, list):
                is_known = [type(rank) is int and 0 <= rank < size for rank in absent.ranks]
                return absent if is_known and all(is_known) else None
        return None


class _Meeting:
    """All ranks leave cards in the store, sealed, and read each other's."""

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        seal: Seal,
        fingerprint: str,
        deadline_s: float,
        gone: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._store, self._rank, self._size, self._seal = store, rank, size, seal
        self._fingerprint, self._deadline_s, self._gone = fingerprint, deadline_s, gone
        self._exchanged: list[str] = []

    def exchange(self, name: str, card: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns every rank's card, by rank.

        Raises:
            PeerError: names the ranks that left none in time, or the host of the store.
            MismatchError: names the ranks whose seal is another.
        """
        keys = [f"{name}/{r}" for r in range(self._size)]
        self._exchanged += keys
        sealed = self._seal.close(json.dumps(card).encode())
        # Who keeps the store leaves last: it also waits until the others know who is absent.
        values = within(
            (1.5 if self._rank == 0 else 1.0) * self._deadline_s,
            lambda: self._wait_for(keys, self._fingerprint.encode() + b" " + sealed),
            is_host=self._rank == 0,
        )
        return [self._read(r, bytes(value)) for r, value in enumerate(values)]

    def forget(self) -> None:
        """Takes the cards out of the store, a message each. One rank, once all have read them."""
        with suppress(RuntimeError):  # its host may have left
            for key in self._exchanged:
                self._store.delete_key(key)

    def _wait_for(self, keys: Sequence[str], mine: bytes) -> list[bytes]:
        ends_s = time.monotonic() + 0.9 * self._deadline_s  # leaves time to see who is absent
        try:
            self._store.set(keys[self._rank], mine)
            while not self._are_here(keys):
                gone = frozenset(self._gone())
                is_over = self._told_absent() is not None or time.monotonic() > ends_s
                if (is_over or gone) and (
                    error := self._give_up(keys, None if is_over else gone)
                ) is not None:
                    raise error
            return list(self._store.multi_get(keys))
        except PeerError:
            raise
        except RuntimeError as error:
            raise PeerError(
                "rank 0, where the workers meet, closed its connections while they were joining: it has ended. Look at "
                "its log, and at that of the launcher, which may keep the meeting place instead.",
                [0],
            ) from error

    def _are_here(self, keys: Sequence[str]) -> bool:
        try:
            look_s = min(self._deadline_s / 20, max(LOOK_S, LOOK_S_PER_RANK * self._size))
            self._store.wait(keys, timedelta(seconds=look_s))
        except RuntimeError:  # it took longer, or the store is gone: then whatever is asked next fails
            return bool(self._store.check(keys))
        return self._told_absent() is None

    def _told_absent(self) -> Absent | None:
        """Returns whom the first to give up missed; None if nobody gave up, or if a stranger wrote what is there."""
        if not self._store.check([ABSENT]):
            return None
        with suppress(ValueError):
            opened = self._seal.open(bytes.fromhex(self._store.get(ABSENT).decode("ascii")))
            return None if opened is None else Absent.of(opened, self._size)
        return None

    def _give_up(self, keys: Sequence[str], gone: Set[int] | None) -> PeerError | None:
        """Returns the error that names who is absent, as the first to give up found; the store's host leaves last.

        Args:
            keys: which the cards are under.
            gone: who is known to be dead, and no others are given up; None: whoever is not here is.

        Returns:
            None: the last one has come just now, or those that are gone came before.
        """
        missing = [r for r, key in enumerate(keys) if not self._store.check([key])]
        found = Absent([r for r in missing if gone is None or r in gone], are_dead=gone is not None)
        if found.ranks:
            sealed = self._seal.close(json.dumps(asdict(found)).encode())
            self._store.compare_set(ABSENT, "", sealed.hex())
        found = self._told_absent() or found
        if not (absent := found.ranks):
            return None
        self._store.set(f"knows/{self._rank}", "")
        if self._rank == 0:
            others = [f"knows/{r}" for r in range(1, self._size) if r not in absent]
            with suppress(RuntimeError):
                self._store.wait(others, timedelta(seconds=self._deadline_s / 5))
        if self._rank in absent:
            return PeerError(
                f"this worker (rank {self._rank}) joined too late: the others had waited for {self._deadline_s:g} s "
                "and given up. Start all workers together, or raise deadline_s.",
                [],
            )
        if found.are_dead:
            return PeerError(
                f"{name_ranks(absent)} died while the workers met, of a world of {self._size}: nobody hears anything "
                "of it any more. Look at the log of those named.",
                absent,
            )
        return PeerError(
            f"{name_ranks(absent)} did not join within {self._deadline_s:g} s, of a world of {self._size}. Start all "
            "workers, look at the log of those named, and raise deadline_s if they are only slow.",
            absent,
        )

    def _read(self, rank: int, value: bytes) -> dict[str, Any]:
        fingerprint, _, sealed = value[:MAX_CARD_BYTES].partition(b" ")
        opened = self._seal.open(sealed)
        if opened is None:
            known = fingerprint.decode(errors="replace")
            raise MismatchError(
                f"what rank {rank} left where the workers meet is not of this job: its secret is {known}, that of rank "
                f"{self._rank} {self._fingerprint} (fingerprints; none: TIGHTWIRE_SECRET is not set). Give all workers "
                "of a job the same TIGHTWIRE_SECRET."
            )
        card: dict[str, Any] = json.loads(opened)
        return card


def within(seconds: float, call: Callable[[], Any], *, is_host: bool = False) -> Any:
    """Returns `call()`, which talks to a store: torch waits for ever where its host is frozen or foreign.

    Args:
        seconds: to wait at most.
        call: talks to the store.
        is_host: whether this worker keeps the store itself.

    Raises:
        PeerError: there was no answer in time; names rank 0, the usual host, where that is another.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="tightwire rendezvous", daemon=True)
    thread.start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        leave(thread)
        raise _no_answer(seconds, is_host) from None


def _no_answer(deadline_s: float, is_host: bool = False) -> PeerError:
    if is_host:
        return PeerError(
            f"the store where workers meet did not answer within {deadline_s:g} s; this worker (rank 0) keeps it, or "
            "its launcher does. Look at the launcher's log; raise deadline_s if this machine is only very busy.",
            [],
        )
    return PeerError(
        f"rank 0 does not answer after {deadline_s:g} s where the workers meet: it never started, has died or is "
        "frozen, or MASTER_ADDR and MASTER_PORT differ from its own. Look at its log; raise deadline_s if it is "
        "only slow.",
        [0],
    )


def _system() -> str:
    return f"{sys.platform}, {sys.byteorder} endian"


def _require_one_system(systems: Sequence[str]) -> None:
    if len(set(systems)) > 1:
        told = "; ".join(f"rank {rank}: {system}" for rank, system in enumerate(systems[:8]))
        raise MismatchError(
            f"the workers run on different systems ({told}), whose messages differ; run all of them on one kind."
        )


@contextmanager
def _interface_for_torch(address: str) -> Iterator[None]:
    """Gives torch's own Gloo the interface of an address; by itself it goes by the host's name, often 127.0.1.1."""
    told = os.environ.get("GLOO_SOCKET_IFNAME")
    if name := interface_of(address):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    try:
        yield
    finally:
        if told is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = told
        else:
            os.environ.pop("GLOO_SOCKET_IFNAME", None)
