"""torch.distributed as a transport: Gloo connections of our own between processes."""

from __future__ import annotations

import atexit
import itertools
import json
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NoReturn, final

import torch
import torch.distributed as dist
from torch import Tensor

from tightwire.errors import PeerError, TransportError
from tightwire.transport.base import Transport, Work, check_group, check_message, check_summable
from tightwire.transport.blame import Wait, describe, name_ranks
from tightwire.transport.launch import Launch
from tightwire.transport.liveness import Liveness

c10d: Final[Any] = dist  # torch does not type its stores and backends
GLOO_SUMS: Final = frozenset({"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64"})
POISON_TAG: Final = 2**31 - 2
POINT_TO_POINT: Final = ("send", "receive")
FOR_EVER: Final = timedelta(days=365)
_generations = itertools.count()  # every process joins equally often, so their prefixes agree


@final
class TorchDistributed(Transport):
    """One process of a torch.distributed world, over Gloo connections of its own; the `join` functions make it.

    Nothing here touches the process groups of the user: collectives on WORLD do not interfere. The backend
    object is called directly, for `dist.isend` costs a third more per small message. Tensors of other devices
    travel by way of host memory.
    """

    native_dtypes = GLOO_SUMS

    def __init__(
        self, store: Any, rank: int, world: Sequence[int], liveness: Liveness, *, is_root: bool = False
    ) -> None:
        """Connects; blocks until all ranks of `world` do.

        Args:
            store: where the processes meet, with a prefix that nothing else uses.
            rank: this process, here.
            world: the world rank of each rank here.
            liveness: knows who is alive; shared by all channels and groups of a world.
            is_root: whether closing this transport is leaving the world.
        """
        self.rank = rank
        self.size = len(world)
        self.deadline_s = liveness.deadline_s
        self._store = store
        self._world = tuple(world)
        self._liveness = liveness
        self._is_root = is_root
        self._attended: set[_Pending] = set()
        self._timeout = timedelta(seconds=liveness.patience_s)
        self._num_children = itertools.count()
        self._children: weakref.WeakSet[TorchDistributed] = weakref.WeakSet()
        arguments = (store, rank, self.size, self._timeout)
        self._gloo: Any = _Pending(self, c10d.ProcessGroupGloo, arguments, "to connect to all ranks").work
        liveness.on_verdict(weakref.WeakMethod(self._hang_up))

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Starts a Gloo send."""
        check_message(self, tensor, dst)
        return _Pending(self, self._gloo.send, ([tensor.cpu()], dst, tag), "send")

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Starts a Gloo receive."""
        check_message(self, tensor, src)
        if tensor.is_cpu:
            return _Pending(self, self._gloo.recv, ([tensor], src, tag), "receive")
        host = torch.empty_like(tensor, device="cpu")
        return _Staged(self.irecv(host, src, tag), host, tensor)

    def all_reduce(self, tensor: Tensor) -> Work:
        """Starts Gloo's all-reduce."""
        check_summable(self, tensor)
        if tensor.is_cpu:
            return _Pending(self, self._gloo.allreduce, ([tensor],), "for an all-reduce")
        host = tensor.cpu()
        return _Staged(self.all_reduce(host), host, tensor)

    def exchange(self, payload: bytes) -> list[bytes]:
        """Returns every rank's payload, by rank: an all-gather of sizes, then one of padded payloads."""
        sizes = [int(n) for n in self._gather(torch.tensor([len(payload)]))]
        mine = torch.zeros(max(sizes), dtype=torch.uint8)
        if payload:
            mine[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return [part[:n].numpy().tobytes() for part, n in zip(self._gather(mine), sizes, strict=True)]

    def channel(self) -> Transport:
        """Returns a transport over the same ranks with TCP connections of its own."""
        return self._child(range(self.size))

    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Returns a transport over `ranks` with TCP connections of its own; None for ranks outside."""
        check_group(self, ranks)
        if self.rank in ranks:
            return self._child(ranks)
        next(self._num_children)
        return None

    def barrier(self) -> None:
        """Blocks until every rank has called it."""
        self._gather(torch.zeros(1, dtype=torch.uint8))

    def close(self) -> None:
        """Closes these connections and those of all channels and groups made from here."""
        if self._is_root:
            self._liveness.leave()
        for child in list(self._children):
            child.close()
        if self._liveness.verdict or self._attended:
            self._hang_up()  # else a wait under way would keep its thread until its deadline, or for ever
        self._gloo = _CLOSED

    def _child(self, ranks: Sequence[int]) -> TorchDistributed:
        store = c10d.PrefixStore(f"child{next(self._num_children)}", self._store)
        world = [self._world[r] for r in ranks]
        child = TorchDistributed(store, list(ranks).index(self.rank), world, self._liveness)
        self._children.add(child)
        return child

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        if tensor.numel():
            _Pending(self, self._gloo.allgather, ([parts], [tensor]), "for all ranks to meet").wait()
        return parts

    def _hang_up(self) -> None:
        """Ends all waits on these connections, here and at the peers.

        Gloo has no call for it; but a receive that times out closes every connection of its context.
        """
        if self.size > 1:
            nobody = torch.empty(1, dtype=torch.uint8)
            with suppress(RuntimeError):
                self._gloo.recv([nobody], (self.rank + 1) % self.size, POISON_TAG).wait(
                    timedelta(milliseconds=1)
                )


@final
class _Pending:
    """Something that Gloo does; what goes wrong becomes a PeerError that names the ranks to blame.

    A send or a receive that cannot even begin fails where it is waited for.
    """

    __slots__ = ("_arguments", "_done", "_error", "_owner", "_verb", "work")

    def __init__(
        self, owner: TorchDistributed, begin: Callable[..., Any], arguments: tuple[Any, ...], verb: str
    ) -> None:
        self._owner, self._arguments, self._verb = owner, arguments, verb
        self._done = False
        self._error: RuntimeError | None = None
        self.work: Any = None
        if verb not in POINT_TO_POINT:
            self.work = self._watched(begin, *arguments)
            return
        try:
            self.work = begin(*arguments)
        except RuntimeError as error:
            self._error = error

    def wait(self) -> None:
        if self._error is not None:
            raise self._owner._liveness.blame(self._describe()) from self._error
        if not self._done:
            self._watched(self.work.wait, self._owner._timeout)
            self._done = True  # Gloo would wait for another message

    def attend(self) -> bool:
        if self._done:
            return True
        if self._error is not None:
            return False
        self._owner._attended.add(self)
        try:
            self.work.wait(FOR_EVER)
        except RuntimeError:
            return False
        finally:
            self._owner._attended.discard(self)
        self._done = True
        return True

    def _watched(self, call: Callable[..., Any], *arguments: Any) -> Any:
        liveness = self._owner._liveness
        liveness.waits[self] = self._describe
        try:
            return call(*arguments)
        except RuntimeError as error:
            raise liveness.blame(self._describe()) from error
        finally:
            del liveness.waits[self]

    def _describe(self) -> Wait:
        world = self._owner._world
        if self._verb in POINT_TO_POINT:
            (tensor,), peer, tag = self._arguments
            return Wait(frozenset({world[peer]}), describe(self._verb, tensor.nbytes, tag))
        return Wait(frozenset(world) - {self._owner._liveness.rank}, self._verb)


@final
class _Staged:
    """Something done to a host copy of a tensor on another device."""

    def __init__(self, work: Work, host: Tensor, tensor: Tensor) -> None:
        self._work, self._host, self._tensor = work, host, tensor

    def wait(self) -> None:
        self._work.wait()
        self._tensor.detach().copy_(self._host)

    def attend(self) -> bool:
        arrived = self._work.attend()
        if arrived:
            self._tensor.detach().copy_(self._host)
        return arrived


@final
class _Closed:
    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # Python itself asks, as doctest and inspect do
        raise TransportError(f"asked to {name} after close(): close a transport at the very end")


_CLOSED: Final = _Closed()


def is_initialized() -> bool:
    """Tells whether the program has joined torch.distributed itself."""
    return dist.is_available() and dist.is_initialized()


def join_initialized(*, host: str | None, deadline_s: float) -> TorchDistributed:
    """Makes the transport of a program that has joined torch.distributed itself.

    Contract: all ranks; blocks until the last one comes.

    Args:
        host: where the workers meet, if it is known.
        deadline_s: the longest that any wait lasts, this one included.

    Raises:
        PeerError: names the ranks that did not come in time.
    """
    store = dist.distributed_c10d._get_default_store()
    return join(store, dist.get_rank(), dist.get_world_size(), host=host, deadline_s=deadline_s)


def join_launched(launch: Launch, *, deadline_s: float) -> TorchDistributed:
    """Makes the transport of a program started by a launcher, and initialises torch.distributed beside it.

    Contract: all ranks; blocks until the last one comes.

    Raises:
        PeerError: names the ranks that did not come in time.
        TransportError: the rendezvous is impossible: its port is taken, or its host has no address.
    """
    store = rendezvous(launch, deadline_s=deadline_s)
    transport = join(store, launch.rank, launch.size, host=launch.host, deadline_s=deadline_s)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.size,
        timeout=timedelta(seconds=deadline_s),
    )
    return transport


def join(store: Any, rank: int, size: int, *, host: str | None, deadline_s: float) -> TorchDistributed:
    """Makes the world's transport once all ranks have come.

    Args:
        store: any torch.distributed store.
        rank: this process.
        size: number of processes.
        host: where the store is, if it is known.
        deadline_s: the longest that any wait lasts, this one included.

    Raises:
        PeerError: names the ranks that did not come in time.
    """
    own = c10d.PrefixStore(f"tightwire/{next(_generations)}", store)
    liveness = Liveness(rank, host=host, deadline_s=deadline_s)
    here = json.dumps({"addresses": liveness.addresses, "token": secrets.token_hex(8)})
    try:
        all_here = within(deadline_s, lambda: meet(own, rank, size, here, deadline_s=deadline_s))
        liveness.meet({r: there["addresses"] for r, there in enumerate(all_here)}, all_here[0]["token"])
        transport = TorchDistributed(own, rank, range(size), liveness, is_root=True)
    except BaseException:
        liveness.leave()
        raise
    atexit.register(liveness.leave_at_exit)
    return transport


def rendezvous(launch: Launch, *, deadline_s: float) -> Any:
    """Returns the store where the workers meet: rank 0 listens unless the launcher does.

    Raises:
        TransportError: the port is taken, or the host has no address.
        PeerError: rank 0 does not listen.
    """
    where = f"{launch.host}:{launch.port}"
    try:
        socket.getaddrinfo(launch.host, launch.port)
    except OSError as error:
        raise TransportError(f"asked to meet at {where}; that host has no address: {error}") from error
    listens = launch.rank == 0 and not launch.agent_hosts
    ends_at = time.monotonic() + deadline_s
    while not listens and not _is_listening(launch):
        if time.monotonic() > ends_at:
            raise _no_answer(deadline_s)
        time.sleep(0.02)
    place = (launch.host, launch.port, launch.size, listens, timedelta(seconds=deadline_s))
    try:
        return within(deadline_s, lambda: c10d.TCPStore(*place, wait_for_workers=False, multi_tenant=True))
    except dist.DistError as error:
        if not listens:
            raise _no_answer(deadline_s) from error
        raise TransportError(
            f"asked to listen at {where} for the other workers; the port is taken, or the address is not of "
            f"this machine: set MASTER_PORT to a free port ({error})"
        ) from error


def _is_listening(launch: Launch) -> bool:
    """Tells whether anybody listens yet: cheaper to ask, and to give up, than torch's store is."""
    with suppress(OSError), socket.create_connection((launch.host, launch.port), timeout=1.0):
        return True
    return False


def meet(store: Any, rank: int, size: int, here: str, *, deadline_s: float) -> list[Any]:
    """Returns what every rank left in the store (JSON), by rank, once all have.

    Raises:
        PeerError: names the ranks that did not come in time.
    """
    names = [f"here/{r}" for r in range(size)]
    store.set(names[rank], here)
    try:
        store.wait(names, timedelta(seconds=0.9 * deadline_s))  # leaves time to see who is absent
    except RuntimeError as error:
        absent = [r for r, name in enumerate(names) if not store.check([name])]
        raise PeerError(
            f"{name_ranks(absent)} did not join within {deadline_s:g} s, of a world of {size}. Start all "
            "workers, look at the log of those named, and raise deadline_s if they are only slow.",
            absent,
        ) from error
    return [json.loads(value) for value in store.multi_get(names)]


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns `call()`, which talks to a store: torch waits for ever where its host is frozen or foreign.

    Raises:
        PeerError: there was no answer in time; names rank 0, the usual host.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="tightwire rendezvous", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        raise _no_answer(seconds) from None


def _no_answer(deadline_s: float) -> PeerError:
    return PeerError(
        f"rank 0 does not answer after {deadline_s:g} s where the workers meet: it never started, has died or is "
        "frozen, or MASTER_ADDR and MASTER_PORT differ from its own. Look at its log; raise deadline_s if it is "
        "only slow.",
        [0],
    )
