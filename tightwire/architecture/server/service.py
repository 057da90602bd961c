"""The threads by which a process serves its shard: one for each worker elsewhere, asleep while that is silent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.messages import (
    ERROR_TEXT,
    HEADER_BYTES,
    REPLY,
    REPLY_PAYLOAD,
    REQUEST,
    REQUEST_PAYLOAD,
    Flag,
    Header,
    Kind,
    Post,
    check_state_size,
    pack_state,
)
from tightwire.architecture.server.shard import Shard
from tightwire.devices import device_named
from tightwire.errors import PeerError, TightwireError, TransportError

# The ranks that an error blames travel as a bit mask above its length.
LENGTH_BITS = 16
# The bit of all ranks from this one on, which no mask has room for: somebody is blamed, by the text alone.
FAR_RANK = 45


class Service:
    """Serves a shard to workers on other ranks, each on a thread of its own: a slow or dead one stops only its own."""

    def __init__(self, shard: Shard, layout: MessageLayout, post: Post, workers: Mapping[int, int]) -> None:
        """Starts the threads.

        Args:
            shard: to serve.
            layout: how its tensors travel.
            post: sends for this process.
            workers: number among the workers → rank, of those elsewhere.
        """
        self._shard, self._layout, self._post = shard, layout, post
        self._busy = set(workers)  # until they are listened to
        self._quiet = threading.Condition()
        self._threads = [
            threading.Thread(
                target=self._run, args=(worker, rank), name=f"tightwire server of {rank}", daemon=True
            )
            for worker, rank in workers.items()
        ]
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits until every worker has said good-bye or is gone; returns whether that is so."""
        for thread in self._threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def settle(self, timeout_s: float) -> None:
        """Waits until no answer is under way, and whoever may still say good-bye is listened to.

        Otherwise a good-bye would find nobody, and wait for ever.
        """
        with self._quiet:
            self._quiet.wait_for(lambda: not self._busy, timeout_s)

    def _run(self, worker: int, rank: int) -> None:
        by_intent = False
        at = self._layout.device
        # On a device each answers on a stream of its own; the channel may be closed here.
        with device_named(at).side(at), suppress(TransportError):
            conversation = _Conversation(self._shard, self._layout, self._post, worker, rank)
            while request := conversation.observe(lambda: self._rests(worker)):
                if request.kind == Kind.BYE:
                    by_intent = True
                    break
                with self._quiet:
                    self._busy.add(worker)
                if not conversation.answer(request):
                    break
        self._rests(worker)
        self._shard.gone(worker, by_intent=by_intent)

    def _rests(self, worker: int) -> None:
        """Notes that no answer to a worker is under way."""
        with self._quiet:
            self._busy.discard(worker)
            self._quiet.notify_all()


class _Conversation:
    """What a server and one worker say to each other."""

    def __init__(self, shard: Shard, layout: MessageLayout, post: Post, worker: int, rank: int) -> None:
        self._shard, self._layout, self._post = shard, layout, post
        self._worker, self._rank = worker, rank
        self._header = torch.empty(HEADER_BYTES, dtype=torch.uint8)

    def observe(self, on_listening: Callable[[], None]) -> Header | None:
        """Returns the worker's next request, None if it is gone or talks nonsense; however long it takes."""
        work = self._post.channel.irecv(self._header, self._rank, REQUEST)
        on_listening()
        if not work.attend():
            return None
        try:
            return Header.of(self._header)
        except TransportError as error:
            self._complain(error)
            return None

    def answer(self, request: Header) -> bool:
        """Answers a request; returns whether that arrived."""
        handlers: dict[Kind, Callable[[Header], bool]] = {
            Kind.PUSH: self._on_push,
            Kind.LEAVE: self._on_leave,
            Kind.FETCH: self._on_fetch,
            Kind.STORE: self._on_store,
        }
        try:
            if request.kind not in handlers:
                raise TransportError(
                    f"rank {self._rank} sent {request.kind.name}, which only a server says: every rank must run the "
                    "same plan and the same version of tightwire."
                )
            return handlers[request.kind](request)
        except TightwireError as error:
            return self._complain(error)

    def _on_push(self, request: Header) -> bool:
        payload = None
        if Flag.EMPTY not in request.flags:
            payload = self._shard.room_for(self._worker, self._layout.push_bytes(request.clock))
            if not self._receive(payload):
                return False
        return self._reply(*self._shard.push(self._worker, request, payload, self._live))

    def _on_leave(self, request: Header) -> bool:
        return self._reply(*self._shard.leave(self._worker, self._live))

    def _on_fetch(self, request: Header) -> bool:
        packed = pack_state(self._shard.state_dict(values=Flag.EMPTY not in request.flags))
        return self._reply(Header(kind=Kind.STATE, size=packed.numel()), packed)

    def _on_store(self, request: Header) -> bool:
        num_bytes = check_state_size(request.size, self._layout.pull_bytes(0, exact=True))
        packed = torch.empty(num_bytes, dtype=torch.uint8)  # on the host, where it is read
        if not self._receive(packed):
            return False
        self._shard.load_packed(packed)
        return self._post.head(Header(kind=Kind.STATE), self._rank, REPLY).attend()

    def _receive(self, payload: Tensor) -> bool:
        return self._post.channel.irecv(payload, self._rank, REQUEST_PAYLOAD).attend()

    def _reply(self, header: Header, payload: Tensor) -> bool:
        works = [
            self._post.head(header, self._rank, REPLY),
            self._post.send(payload, self._rank, REPLY_PAYLOAD, planned_bytes=payload.numel()),
        ]
        arrived = [work.attend() for work in works]
        return all(arrived)

    def _live(self) -> None:
        """Tells the worker that its server lives and it must wait."""
        self._post.head(Header(kind=Kind.WAIT), self._rank, REPLY).attend()

    def _complain(self, error: TightwireError) -> bool:
        text = str(error).encode()[: (1 << LENGTH_BITS) - 1]
        ranks = error.ranks if isinstance(error, PeerError) else ()
        # A loss of nobody in particular has a mark of its own: workers survive it, and no other error.
        marks = (
            {min(rank, FAR_RANK) for rank in ranks} or {FAR_RANK} if isinstance(error, PeerError) else set()
        )
        blamed = sum(1 << rank for rank in marks)
        self._post.head(
            Header(kind=Kind.ERROR, size=blamed << LENGTH_BITS | len(text)), self._rank, REPLY
        ).attend()
        payload = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return self._post.send(payload, self._rank, ERROR_TEXT, planned_bytes=len(text)).attend()


def error_of(text: str, size: int) -> TightwireError:
    """Returns the error that a server complained of.

    >>> error_of("a worker is gone", 1 << FAR_RANK << LENGTH_BITS), error_of("no such rate", 0)
    (PeerError('a worker is gone'), TransportError('no such rate'))
    """
    mask = size >> LENGTH_BITS
    blamed = [rank for rank in range(FAR_RANK) if mask >> rank & 1]
    return PeerError(text, blamed) if mask else TransportError(text)
