"""torch.distributed as a transport: Gloo connections of our own between processes."""

from __future__ import annotations

import atexit
import itertools
import json
import secrets
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NoReturn, final

import torch
import torch.distributed as dist
from torch import Tensor

from tightwire.errors import PeerError, TransportError
from tightwire.transport.base import Transport, Work, check_group, check_message, check_summable
from tightwire.transport.blame import Wait, describe, name_ranks
from tightwire.transport.liveness import Liveness

c10d: Final[Any] = dist  # torch does not type its stores and backends
GLOO_SUMS: Final = frozenset({"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64"})
POISON_TAG: Final = 2**31 - 2


@final
class TorchDistributed(Transport):
    """One process of a torch.distributed world, over Gloo connections of its own; `join` makes it.

    Nothing here touches the process groups of the user: collectives on WORLD do not interfere. The backend
    object is called directly, for `dist.isend` costs a third more per small message.
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
        self._timeout = timedelta(seconds=liveness.patience_s)
        self._num_children = itertools.count()
        self._children: weakref.WeakSet[TorchDistributed] = weakref.WeakSet()
        arguments = (store, rank, self.size, self._timeout)
        self._gloo: Any = _Pending(self, c10d.ProcessGroupGloo, arguments, "to connect to all ranks").work
        liveness.on_verdict(weakref.WeakMethod(self._hang_up))

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Starts a Gloo send."""
        check_message(self, tensor, dst)
        return _Pending(self, self._gloo.send, ([tensor], dst, tag), "send")

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Starts a Gloo receive."""
        check_message(self, tensor, src)
        return _Pending(self, self._gloo.recv, ([tensor], src, tag), "receive")

    def all_reduce(self, tensor: Tensor) -> Work:
        """Starts Gloo's all-reduce."""
        check_summable(self, tensor)
        return _Pending(self, self._gloo.allreduce, ([tensor],), "for an all-reduce")

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
        if self._liveness.verdict:
            self._hang_up()  # else a collective under way would keep its threads until its deadline
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
    """Something that Gloo does; what goes wrong becomes a PeerError that names the ranks to blame."""

    __slots__ = ("_arguments", "_owner", "_verb", "work")

    def __init__(
        self, owner: TorchDistributed, begin: Callable[..., Any], arguments: tuple[Any, ...], verb: str
    ) -> None:
        self._owner, self._arguments, self._verb = owner, arguments, verb
        self.work = self._watched(begin, *arguments)

    def wait(self) -> None:
        self._watched(self.work.wait, self._owner._timeout)

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
        if self._verb in ("send", "receive"):
            (tensor,), peer, tag = self._arguments
            return Wait(frozenset({world[peer]}), describe(self._verb, tensor.nbytes, tag))
        return Wait(frozenset(world) - {self._owner._liveness.rank}, self._verb)


@final
class _Closed:
    def __getattr__(self, name: str) -> NoReturn:
        raise TransportError(f"asked to {name} after close(): close a transport at the very end")


_CLOSED: Final = _Closed()


def join(store: Any, rank: int, size: int, *, deadline_s: float, host: str | None = None) -> TorchDistributed:
    """Makes the world's transport once all ranks have come.

    Contract: all ranks; blocks until the last one comes.

    Args:
        store: a torch.distributed store, with a prefix that nothing else uses.
        rank: this process.
        size: number of processes.
        deadline_s: the longest that any wait lasts, this one included.
        host: where the store is, if it is known.

    Raises:
        PeerError: names the ranks that did not come in time.
    """
    liveness = Liveness(rank, host=host, deadline_s=deadline_s)
    here = {"addresses": liveness.addresses, "token": secrets.token_hex(8)}
    try:
        arrivals = within(
            deadline_s, lambda: meet(store, rank, size, json.dumps(here), deadline_s=deadline_s)
        )
        liveness.meet({r: arrival["addresses"] for r, arrival in enumerate(arrivals)}, arrivals[0]["token"])
        transport = TorchDistributed(store, rank, range(size), liveness, is_root=True)
    except BaseException:
        liveness.leave()
        raise
    atexit.register(liveness.leave_at_exit)
    return transport


def meet(store: Any, rank: int, size: int, here: str, *, deadline_s: float) -> list[Any]:
    """Returns what every rank left in the store (JSON), by rank, once all have.

    Raises:
        PeerError: names the ranks that did not come in time.
    """
    names = [f"here/{r}" for r in range(size)]
    store.set(names[rank], here)
    try:
        store.wait(names, timedelta(seconds=deadline_s))
    except RuntimeError as error:
        absent = [r for r, name in enumerate(names) if not store.check([name])]
        raise PeerError(
            f"{name_ranks(absent)} did not join within {deadline_s:g} s, of a world of {size}. Start all "
            "workers, look at the log of those named, and raise deadline_s if they are only slow.",
            absent,
        ) from error
    return [json.loads(value) for value in store.multi_get(names)]


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns `call()`, which talks to a store whose host may be dead or frozen: torch would then wait forever.

    Raises:
        PeerError: there was no answer; names rank 0, the usual host.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds + 2.0)
    if failure and not isinstance(failure[0], dist.DistError):
        raise failure[0]
    if not outcome:
        cause = failure[0] if failure else None
        raise PeerError("rank 0, where the workers meet, does not answer; look at its log", [0]) from cause
    return outcome[0]
