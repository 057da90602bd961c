"""How a worker asks a shard, on its own rank or elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.messages import (
    ERROR_TEXT,
    HEADER_BYTES,
    NO_FLAG,
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
    unpack_state,
)
from tightwire.architecture.server.service import LENGTH_BITS, error_of
from tightwire.architecture.server.shard import Shard
from tightwire.transport.base import Work

Answer = tuple[Header, Tensor]

# How long a good-bye is offered.
GOODBYE_S = 2.0


class Client(Protocol):
    """One shard, as a worker sees it. A question is asked, then its answer waited for, before the next one."""

    def push(self, clock: int, payload: Tensor | None, *, read_in: int) -> None:
        """Sends the gradient of step `clock`, None if there is none; `payload` must not change until the answer.

        Args:
            clock: of the step.
            payload: the push.
            read_in: the least round, of all shards, in which the parameters were read that it was computed with.
        """

    def leave(self, clock: int) -> None:
        """Says that this worker stops until all have."""

    def answer(self) -> Answer:
        """Waits for the parameters to go on with.

        Raises:
            PeerError: the server is dead, or somebody whom it waits for has sent nothing for too long.
        """

    def fetch(self, *, values: bool = True) -> dict[str, Any]:
        """Returns the shard's part of a checkpoint, with or without values."""

    def store(self, state: dict[str, Any]) -> None:
        """Gives the shard its part of a checkpoint."""

    def bye(self) -> None:
        """Says that nothing more will come."""


class LocalClient(Client):
    """A shard on the worker's own rank: nothing travels."""

    def __init__(self, shard: Shard, worker: int) -> None:
        self._shard, self._worker = shard, worker
        self._ask: Callable[[], Answer] | None = None

    def push(self, clock: int, payload: Tensor | None, *, read_in: int) -> None:  # noqa: D102
        request = Header(kind=Kind.PUSH, clock=clock, round=read_in)
        self._ask = lambda: self._shard.push(self._worker, request, payload, _wait_on)

    def leave(self, clock: int) -> None:  # noqa: D102
        self._ask = lambda: self._shard.leave(self._worker, _wait_on)

    def answer(self) -> Answer:  # noqa: D102
        assert self._ask is not None
        return self._ask()

    def fetch(self, *, values: bool = True) -> dict[str, Any]:  # noqa: D102
        return self._shard.state_dict(values=values)

    def store(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._shard.load_state_dict(state)

    def bye(self) -> None:  # noqa: D102
        self._shard.gone(self._worker, by_intent=True)


class RemoteClient(Client):
    """A shard on another rank."""

    def __init__(self, post: Post, layout: MessageLayout, rank: int) -> None:
        self._post, self._layout, self._rank = post, layout, rank
        self._header = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        self._room = layout.room(layout.pull_bytes(1, exact=True))
        self._sent: list[Work] = []
        self._arriving: tuple[Work, Work, Tensor] | None = None

    def push(self, clock: int, payload: Tensor | None, *, read_in: int) -> None:  # noqa: D102
        self._expect(self._layout.pull_bytes(clock))
        flags = Flag.EMPTY if payload is None else NO_FLAG
        header = Header(kind=Kind.PUSH, flags=flags, clock=clock, round=read_in)
        self._sent = [self._post.head(header, self._rank, REQUEST)]
        if payload is not None:
            self._sent.append(self._send(payload))

    def leave(self, clock: int) -> None:  # noqa: D102
        self._expect(self._layout.pull_bytes(clock, exact=True))
        self._sent = [self._post.head(Header(kind=Kind.LEAVE, clock=clock), self._rank, REQUEST)]

    def answer(self) -> Answer:  # noqa: D102
        assert self._arriving is not None
        head, body, payload = self._arriving
        header = self._next_header(head)
        body.wait()
        for work in self._sent:
            work.wait()
        return header, payload

    def fetch(self, *, values: bool = True) -> dict[str, Any]:  # noqa: D102
        head = self._post.channel.irecv(self._header, self._rank, REPLY)
        flags = NO_FLAG if values else Flag.EMPTY
        self._post.head(Header(kind=Kind.FETCH, flags=flags), self._rank, REQUEST).wait()
        size = check_state_size(self._next_header(head).size, self._layout.pull_bytes(0, exact=True))
        packed = torch.empty(size, dtype=torch.uint8)
        self._post.channel.irecv(packed, self._rank, REPLY_PAYLOAD).wait()
        return unpack_state(packed)

    def store(self, state: dict[str, Any]) -> None:  # noqa: D102
        packed = pack_state(state)
        head = self._post.channel.irecv(self._header, self._rank, REPLY)
        self._post.head(Header(kind=Kind.STORE, size=packed.numel()), self._rank, REQUEST).wait()
        self._send(packed).wait()
        self._next_header(head)

    def bye(self) -> None:  # noqa: D102
        work = self._post.head(Header(kind=Kind.BYE), self._rank, REQUEST)
        # Its server may just be closing too, and then nobody takes it: all have landed, and nothing is lost.
        heard = threading.Thread(target=work.attend, name=f"tightwire good-bye to {self._rank}", daemon=True)
        heard.start()
        heard.join(GOODBYE_S)

    def _send(self, payload: Tensor) -> Work:
        return self._post.send(payload, self._rank, REQUEST_PAYLOAD, planned_bytes=payload.numel())

    def _expect(self, num_bytes: int) -> None:
        """Posts the receives of an answer: before the sends, so that lines run both ways at once."""
        if self._room.numel() < num_bytes:
            self._room = self._layout.room(num_bytes)
        payload = self._room[:num_bytes]
        head = self._post.channel.irecv(self._header, self._rank, REPLY)
        self._arriving = head, self._post.channel.irecv(payload, self._rank, REPLY_PAYLOAD), payload

    def _next_header(self, head: Work) -> Header:
        """Waits through signs of life."""
        head.wait()
        while (header := Header.of(self._header)).kind == Kind.WAIT:
            self._post.channel.irecv(self._header, self._rank, REPLY).wait()
        if header.kind == Kind.ERROR:
            text = torch.empty(header.size & ((1 << LENGTH_BITS) - 1), dtype=torch.uint8)
            self._post.channel.irecv(text, self._rank, ERROR_TEXT).wait()
            raise error_of(text.numpy().tobytes().decode(errors="replace"), header.size)
        return header


def _wait_on() -> None:
    """Goes on waiting."""
