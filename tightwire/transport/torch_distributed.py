"""torch.distributed as a transport: Gloo connections of our own between processes."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NoReturn, final

import torch
import torch.distributed as dist
from torch import Tensor

from tightwire.errors import PeerError, TightwireError, TransportError
from tightwire.transport.base import Transport, Watch, Work, check_group, check_message, check_summable
from tightwire.transport.blame import Wait, describe
from tightwire.transport.helpers import Helpers, is_expendable, leave
from tightwire.transport.liveness import Liveness, error_text

c10d: Final[Any] = dist  # torch does not type its stores and backends
GLOO_SUMS: Final = frozenset({"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64"})
POISON_TAG: Final = 2**31 - 2
POINT_TO_POINT: Final = ("send", "receive")
# Of a payload that all exchange, so much travels with its size.
HEAD_BYTES, INLINE_BYTES = 8, 504
FOR_EVER: Final = timedelta(days=365)
_helpers = Helpers("tightwire waits")
log = logging.getLogger("tightwire")


def _let_go(backend: list[Any]) -> None:
    """Frees Gloo's backend without waiting.

    It ends with its collectives, and one that got a part of a last message ends after minutes.

    Args:
        backend: the only reference.
    """
    thread = threading.Thread(target=backend.clear, name="tightwire lets go", daemon=True)
    thread.start()
    leave(thread)


@final
class TorchDistributed(Transport):
    """One process of a torch.distributed world, over Gloo connections of its own; the `join` functions make it.

    Nothing here touches the process groups of the user: collectives on WORLD do not interfere. The backend
    object is called directly, for `dist.isend` costs a third more per small message. Tensors of other devices
    travel by way of host memory.

    Attributes:
        num_children: how many channels and groups were made from here so far.
        num_channels: how many channels were asked for.
        frees_behind: whether what is closed is freed on a thread of its own, for this one goes on in another world.
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
        self.deadline_s, self.late_s = liveness.deadline_s, liveness.late_s
        self._store = store
        self._world = tuple(world)
        self._liveness = liveness
        self._is_root = is_root
        self._attended: set[_Pending] = set()
        self._given_up: set[int] = set()
        self._has_abandoned = False
        self._waiting: set[_Pending] = set()
        # The liveness thread ends waits; Gloo's own limit would close all connections of a context.
        self._timeout = timedelta(seconds=1.2 * liveness.late_s + 10)
        self.num_children = self.num_channels = 0
        self.frees_behind = False
        self._stock: list[TorchDistributed] = []
        self._children: weakref.WeakSet[TorchDistributed] = weakref.WeakSet()
        self._gloo: Any = _CLOSED
        self._connect()

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
        """Returns every rank's payload, by rank: one all-gather, and another of the rests where any payload is long."""
        head = len(payload).to_bytes(HEAD_BYTES, "little") + payload[:INLINE_BYTES]
        heads = self._gather_bytes(head, HEAD_BYTES + INLINE_BYTES)
        sizes = [int.from_bytes(head[:HEAD_BYTES], "little") for head in heads]
        payloads = [head[HEAD_BYTES:][:n] for head, n in zip(heads, sizes, strict=True)]
        if max(sizes) > INLINE_BYTES:
            rests = self._gather_bytes(payload[INLINE_BYTES:], max(sizes) - INLINE_BYTES)
            payloads = [(own + rest)[:n] for own, rest, n in zip(payloads, rests, sizes, strict=True)]
        return payloads

    def channel(self) -> Transport:
        """Returns a transport over the same ranks with TCP connections of its own."""
        self.num_channels += 1
        return self._stock.pop(0) if self._stock else self._child(range(self.size))

    def stock(self, channels: int) -> None:
        """Connects so many channels now, which `channel` returns one after the other. Every rank, with one number."""
        self._stock += [self._child(range(self.size)) for _ in range(channels)]

    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Returns a transport over `ranks` with TCP connections of its own; None for ranks outside."""
        check_group(self, ranks)
        if self.rank in ranks:
            return self._child(ranks)
        self.num_children += 1
        return None

    def barrier(self) -> None:
        """Blocks until every rank has called it."""
        self._gather(torch.zeros(1, dtype=torch.uint8))

    def watch(self, wait: Wait, *, ends_run: bool = False, is_first: bool = False) -> Watch:
        """Has the liveness thread look after a wait made elsewhere."""
        return _Watch(self._liveness, wait.numbered(self._world), ends_run=ends_run, is_first=is_first)

    def fail(self, error: BaseException) -> None:
        """Tells all ranks of the world, unless they know of an error already."""
        if is_broken_connection(error):
            raise self._liveness.blame(
                self._liveness.wait_for_all("in a collective of the program's own")
            ) from error
        self._liveness.fail(error_text(error))

    def announce(self, number: int) -> None:
        """Tells all ranks of the world, in datagrams."""
        self._liveness.announce(number)

    def announced(self, rank: int) -> int:
        """Returns what this process has heard."""
        return self._liveness.announced.get(self._world[rank], 0)

    @property
    def waited_s(self) -> float:
        """For how long this process has waited for others."""
        return self._liveness.waited_s()

    @property
    def is_left_behind(self) -> bool:
        """Whether most others have left this world."""
        return self._liveness.is_left_behind

    def hear_silent(self, ranks: Sequence[int]) -> None:
        """Hears from elsewhere that ranks are silent; whoever waits for one of them is told that it is gone."""
        self._liveness.hear_silent(ranks)

    def give_up(self, rank: int) -> None:
        """Leaves the threads that attend to the rank behind; they end when the channel closes."""
        self._given_up.add(self._world[rank])

    def close(self) -> None:
        """Closes these connections and those of all channels and groups made from here."""
        if self._is_root:
            atexit.unregister(self.leave_at_exit)
            self._liveness.leave()
        self._close_connections()

    def leave_at_exit(self) -> None:
        """Closes the world's transport because the program ends, perhaps by an error, of which all are told."""
        error: BaseException | None = sys.__dict__.get("last_value")
        if error is not None:
            try:
                self.fail(error)
            except PeerError as named:  # the traceback of the program's own error has named nobody
                log.error("%s", named)
        self._liveness.leave("" if error is None else error_text(error))
        self._close_connections()

    def _close_connections(self) -> None:
        for child in list(self._children):
            child.frees_behind |= self.frees_behind
            child.close()
        if self._gloo is _CLOSED:
            return
        if self._liveness.verdict or self._attended or self._waiting or self._has_abandoned:
            self._hang_up()  # else a wait under way would keep its thread until its deadline, or for ever
            _let_go(self._take_backend())
        elif self.frees_behind:
            _let_go(self._take_backend())
        else:
            self._gloo = _CLOSED

    def _take_backend(self) -> list[Any]:
        """Returns the only reference to it."""
        last, self._gloo = [self._gloo], _CLOSED
        return last

    def _connect(self) -> None:
        """Connects all ranks to all, on the interface that liveness listens on.

        Gloo's own limit holds for each connection anew, and nothing ends its waiting for the store where that is
        frozen, so a thread connects, and this one waits for it or for a verdict.
        """
        wait = Wait(frozenset(self._world) - {self._liveness.rank}, "to connect to all ranks")
        options = c10d.ProcessGroupGloo._Options()
        options._timeout = self._timeout
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname=self._liveness.address[0])]
        arguments = (self._store, self.rank, self.size, options)
        self._gloo = guarded(self._liveness, lambda: c10d.ProcessGroupGloo(*arguments), wait)
        self._liveness.on_verdict(weakref.WeakMethod(self._hang_up))
        if self.size > 1:
            self.barrier()  # the store is not needed any more once all have connected: its host may leave
        if self.rank == 0:
            # Gloo left each rank's addresses, which a store would keep for ever.
            with suppress(RuntimeError):
                for rank in range(self.size):
                    self._store.delete_key(f"0/{rank}")

    def _child(self, ranks: Sequence[int]) -> TorchDistributed:
        self._liveness.recover()
        store = c10d.PrefixStore(f"child{self.num_children}", self._store)
        self.num_children += 1
        world = [self._world[r] for r in ranks]
        child = TorchDistributed(store, list(ranks).index(self.rank), world, self._liveness)
        self._children.add(child)
        return child

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        if tensor.numel():
            _Pending(self, self._gloo.allgather, ([parts], [tensor]), "for all ranks to meet").wait()
        return parts

    def _gather_bytes(self, payload: bytes, num_bytes: int) -> list[bytes]:
        """Returns every rank's payload, filled up with zeros to `num_bytes`."""
        mine = torch.frombuffer(bytearray(payload.ljust(num_bytes, b"\0")), dtype=torch.uint8)
        return [part.numpy().tobytes() for part in self._gather(mine)]

    def _hang_up(self) -> None:
        """Ends all waits on these connections, here and at the peers.

        Gloo has no call for it; but a receive that times out closes every connection of its context. One from a peer
        that has ended already does not time out: it fails at once and closes nothing, so every peer is tried.
        """
        nobody = torch.empty(1, dtype=torch.uint8)
        for step in range(1, self.size):
            try:
                self._gloo.recv([nobody], (self.rank + step) % self.size, POISON_TAG).wait(
                    timedelta(milliseconds=1)
                )
            except RuntimeError as error:  # torch takes some 7 ms to write one
                if "Timed out" in str(error):
                    return


@final
class _Pending:
    """Something that Gloo does; what goes wrong becomes a PeerError that names the ranks to blame.

    A send or a receive that cannot even begin fails where it is waited for. When a connection closes, Gloo never ends
    the wait for a message of which a part was moved, nor for a send, however small, that its own thread has just taken
    up because the peer had asked for it. So waits are made on threads that can be left behind, unless this one can;
    that costs some 10 µs.
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
            self._watched(self._wait if is_expendable() else self._wait_apart)
            self._done = True  # Gloo would wait for another message

    def _wait(self) -> None:
        self.work.wait(self._owner._timeout)

    def _wait_apart(self) -> None:
        failure: list[RuntimeError] = []

        def attempt() -> bool:
            try:
                self._wait()
            except RuntimeError as error:
                failure.append(error)
            return True

        if not _helpers.run(attempt, lambda: self._owner._liveness.verdict is not None):
            self._owner._has_abandoned = True
            raise RuntimeError("the rest of a message never came")
        if failure:
            raise failure[0]

    def attend(self) -> bool:
        if self._done:
            return True
        if self._error is not None:
            return False
        liveness, peer = self._owner._liveness, self._owner._world[self._arguments[1]]
        given_up = self._owner._given_up
        if peer in liveness.lost or peer in given_up:
            self._owner._has_abandoned = True
            return False
        self._owner._attended.add(self)
        liveness.watch(self, self._describe, ends_run=False, has_end=False)
        try:
            self._done = _helpers.run(self._arrived, lambda: peer in liveness.lost or peer in given_up)
            self._owner._has_abandoned |= not self._done
        finally:
            liveness.unwatch(self)
            self._owner._attended.discard(self)
        return self._done

    def _arrived(self) -> bool:
        try:
            self.work.wait(FOR_EVER)
        except RuntimeError:
            return False
        return True

    def _watched(self, call: Callable[..., Any], *arguments: Any) -> Any:
        liveness, waiting = self._owner._liveness, self._owner._waiting
        waiting.add(self)
        liveness.watch(self, self._describe)
        try:
            return call(*arguments)
        except RuntimeError as error:
            raise liveness.blame(self._describe()) from error
        finally:
            liveness.unwatch(self)
            waiting.discard(self)

    def _describe(self) -> Wait:
        world = self._owner._world
        if self._verb in POINT_TO_POINT:
            (tensor,), peer, tag = self._arguments
            return Wait(frozenset({world[peer]}), describe(self._verb, tensor.nbytes, tag))
        return Wait(frozenset(world) - {self._owner._liveness.rank}, self._verb)


@final
class _Watch:
    """A wait made elsewhere, looked after by the liveness thread."""

    def __init__(self, liveness: Liveness, wait: Wait, *, ends_run: bool, is_first: bool) -> None:
        self._liveness, self._wait = liveness, wait
        liveness.watch(self, lambda: wait, ends_run=ends_run, is_first=is_first)

    def check(self) -> None:
        if self._liveness.verdict is not None:
            raise self._liveness.accuse(self._wait)

    def close(self) -> None:
        self._liveness.unwatch(self)


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error is that of a collective of torch.distributed's whose connections broke."""
    if isinstance(error, TightwireError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo/transport/" in str(error)


def guarded(liveness: Liveness, call: Callable[[], Any], wait: Wait) -> Any:
    """Returns what a call returns that only the ranks awaited can end; it is made on another thread.

    Raises:
        PeerError: somebody is to blame before it ends.
    """
    outcome: list[Any] = []

    def connect() -> None:
        try:
            made: Any = call()
        except BaseException as error:
            made = error
        with liveness.changed:
            outcome.append(made)
            liveness.changed.notify_all()

    key = object()
    liveness.watch(key, lambda: wait, is_first=True)
    thread = threading.Thread(target=connect, name="tightwire connects", daemon=True)
    thread.start()
    try:
        with liveness.changed:
            liveness.changed.wait_for(lambda: outcome or liveness.verdict is not None)
    finally:
        liveness.unwatch(key)
    if not outcome:
        leave(thread)
        raise liveness.accuse(wait)
    if isinstance(outcome[0], RuntimeError):
        raise liveness.blame(wait) from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


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


def ranks_of(group: object) -> list[int]:
    """Returns the ranks of a process group in the world, or the ranks of a list of them.

    Raises:
        TypeError: neither.
    """
    if isinstance(group, Iterable):
        return [int(rank) for rank in group]
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{group!r} is neither a list of ranks nor a process group.")
    return dist.get_process_group_ranks(group)
