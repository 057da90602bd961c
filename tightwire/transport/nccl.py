"""NCCL as a transport: messages stay on the device, and its streams wait for each other, not the host.

NCCL has no tags. Messages between two ranks are told apart by the order in which both ask for them, so all ranks ask
for the same groups in the same order, each group as a whole: what is asked for between two waits is one group, whose
sends and receives start together and end together. Host memory travels by the transport inside, as do control data.

Each channel has a communicator of its own. A communicator that waits for a rank which never comes would wait for ever,
and the device with it: a thread watches what is under way, and by the deadline ends the communicator, names the rank,
and leaves what was to be received undefined. Everything on the channel fails from then on.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from tightwire.devices import device_named
from tightwire.errors import AttachError, TransportError
from tightwire.transport.base import Transport, Watch, Work, check_group, check_message, check_summable
from tightwire.transport.blame import Wait
from tightwire.transport.communicators import Communicator, Launched
from tightwire.transport.helpers import leave
from tightwire.transport.watched import LOOK_S, require_alive
from tightwire.transport.wrapper import Wrapper

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# What NCCL itself sums, by name.
SUMS = frozenset({"float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64"})

Connect = Callable[[Transport, str, "torch.device"], Communicator]


@final
class Nccl(Wrapper):
    """Moves device memory by NCCL, and host memory by the transport inside.

    Contract: on one channel all ranks ask for the same groups in the same order; at most as many channels move device
    memory as the device has queues, or the next is refused. `wait` has this thread's stream wait, and not the host:
    what became of a group that no rank completed is known by `require_sound`, and by every later call.
    """

    def __init__(
        self, inner: Transport, connect: Connect, *, kind: str = "cuda", name: str = "world", depth: int = 0
    ) -> None:
        """Wraps; a communicator is made with the first message.

        Args:
            inner: for host memory and control; over the same ranks.
            connect: makes a communicator over the ranks of a transport, from a name of its own, for memory on one
                device, whichever is current. All ranks.
            kind: of device whose memory it moves.
            name: of this channel, the same on all its ranks.
            depth: channels that this one was made from.
        """
        super().__init__(inner)
        self.moves, self.ordered = inner.moves | {kind}, frozenset({kind})
        self.native_dtypes = SUMS
        self._connect, self._kind, self._name, self._depth = connect, kind, name, depth
        self._children = itertools.count()
        self._communicator: Communicator | None = None
        self._posted: list[_Posted] = []
        self._watcher: _Watcher | None = None

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Adds a send to the group that is being asked for; the tag is left out."""
        if tensor.device.type != self._kind:
            return self.inner.isend(tensor, dst, tag)
        check_message(self, tensor, dst)
        return self._post(_Posted(self, tensor.detach(), dst, sends=True))

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Adds a receive to the group that is being asked for; the tag is left out."""
        if tensor.device.type != self._kind:
            return self.inner.irecv(tensor, src, tag)
        check_message(self, tensor, src)
        return self._post(_Posted(self, tensor.detach(), src, sends=False))

    def all_reduce(self, tensor: Tensor) -> Work:
        """Launches NCCL's own sum."""
        if tensor.device.type != self._kind:
            return self.inner.all_reduce(tensor)
        check_summable(self, tensor)
        self.require_sound()
        self.flush()
        launched = self._connected(tensor.device).all_reduce(tensor.detach())
        self._watch(launched, range(self.size))
        return _Launched(launched)

    def flush(self) -> None:
        """Launches what was asked for since the last wait, as one group."""
        group, self._posted = self._posted, []
        if not group:
            return
        self.require_sound()
        sends = [(post.tensor, post.peer) for post in group if post.sends]
        receives = [(post.tensor, post.peer) for post in group if not post.sends]
        launched = self._connected(group[0].tensor.device).together(sends, receives)
        self._watch(launched, sorted({post.peer for post in group}))
        for post in group:
            post.launched = launched

    def require_sound(self) -> None:
        """Raises what ended the communicator.

        Raises:
            PeerError: names the rank that did not come.
        """
        if self._watcher is not None and self._watcher.failure is not None:
            raise self._watcher.failure
        self.inner.require_sound()

    def channel(self) -> Transport:
        """Returns a transport over the same ranks with a communicator of its own."""
        return self.wrap(self.inner.channel(), range(self.size))

    def group(self, ranks: Sequence[int]) -> Transport | None:
        """Returns a transport over some ranks with a communicator of its own; None for ranks outside."""
        check_group(self, ranks)
        child = self.inner.group(ranks)
        if child is None:
            next(self._children)
            return None
        return self.wrap(child, ranks)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Wraps a channel or a group."""
        name = f"{self._name}.{next(self._children)}"
        return Nccl(child, self._connect, kind=self._kind, name=name, depth=self._depth + 1)

    def close(self) -> None:
        """Ends the watch and the communicator, then the transport inside."""
        if self._watcher is not None:
            self._watcher.close()
        if self._communicator is not None:
            self._communicator.abort()  # nothing of ours is under way; a peer's half of a group never will be
            self._communicator = None
        self.inner.close()

    def _post(self, post: _Posted) -> Work:
        self.require_sound()
        self._posted.append(post)
        return post

    def _connected(self, at: torch.device) -> Communicator:
        if self._communicator is None:
            self._communicator = self._connect(self.inner, self._name, at)
            self._watcher = _Watcher(self.inner, self._communicator, at)
        return self._communicator

    def _watch(self, launched: Launched, peers: Sequence[int]) -> None:
        assert self._watcher is not None
        self._watcher.add(launched, [peer for peer in peers if peer != self.rank])


class _Posted:
    """A send or a receive that is asked for; whoever waits launches its group."""

    def __init__(self, owner: Nccl, tensor: Tensor, peer: int, *, sends: bool) -> None:
        self._owner = owner
        self.tensor, self.peer, self.sends = tensor, peer, sends
        self.launched: Launched | None = None

    def wait(self) -> None:
        if self.launched is None:
            self._owner.flush()
        assert self.launched is not None
        self.launched.wait()

    def attend(self) -> bool:
        raise TransportError(
            "asked to attend to a message on a device, however long it takes; NCCL waits as a whole, with its stream: "
            "what serves others travels by host memory."
        )


class _Launched:
    """A sum under way."""

    def __init__(self, launched: Launched) -> None:
        self._launched = launched

    def wait(self) -> None:
        self._launched.wait()

    def attend(self) -> bool:
        self.wait()
        return True


class _Watcher:
    """A thread that looks whether what was launched completes, and ends the communicator if somebody is to blame.

    Attributes:
        failure: why it ended.
    """

    def __init__(self, inner: Transport, communicator: Communicator, at: torch.device) -> None:
        self._at = at
        self.failure: BaseException | None = None
        self._inner, self._communicator = inner, communicator
        self._peers = frozenset(range(inner.size)) - {inner.rank}  # of the last group
        self._pending: deque[tuple[Launched, frozenset[int]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="tightwire-nccl-watch", daemon=True)
        self._thread.start()

    def add(self, launched: Launched, peers: Sequence[int]) -> None:
        """Looks after a group with some ranks."""
        with self._changed:
            self._pending.append((launched, frozenset(peers)))
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        leave(self._thread, after_s=1.0)

    def _run(self) -> None:
        with device_named(self._at).current(self._at):
            self._look()

    def _look(self) -> None:
        while (launched := self._next()) is not None:
            watch: Watch | None = None
            try:
                while not launched.is_completed() and not self._closed:
                    if watch is None:
                        watch = self._inner.watch(self._wait, ends_run=True)
                    watch.check()
                    self._pause(LOOK_S)
                self._require_no_fault()  # a group that failed is completed, too
            except Exception as failure:
                self.failure = failure
                self._communicator.abort()
                return
            finally:
                if watch is not None:
                    watch.close()

    def _require_no_fault(self) -> None:
        """Raises what NCCL met with: a rank that is found dead shortly after is to blame, and named.

        Raises:
            PeerError: names it.
            TransportError: nobody is dead.
        """
        if self._closed or not (fault := self._communicator.fault()):
            return
        require_alive(self._inner, self._wait, self._pause)
        peers = ", ".join(map(str, sorted(self._peers)))
        raise TransportError(
            f"NCCL failed in a group of messages with ranks {peers}, who all are alive: {fault}. "
            "What was to be received is undefined: load a checkpoint and start again; NCCL_DEBUG=WARN tells more."
        )

    @property
    def _wait(self) -> Wait:
        return Wait(self._peers, "for a group of messages on the device")

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _next(self) -> Launched | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._pending) or self._closed)
            if self._closed:
                return None
            launched, self._peers = self._pending.popleft()
            return launched


def require_devices_apart(transport: Transport, card: str) -> None:
    """Refuses NCCL where two ranks share a device.

    Args:
        transport: over all ranks.
        card: which device this rank trains on, unlike all others in the world.

    Contract: every rank; blocks.

    Raises:
        AttachError: on all ranks alike, names who shares.
    """
    cards = [answer.decode() for answer in transport.exchange(card.encode())]
    shared = {seen: [r for r, other in enumerate(cards) if other == seen] for seen in cards}
    if crowds := [ranks for ranks in shared.values() if len(ranks) > 1]:
        raise AttachError(
            f"NCCL was asked for, and ranks {' and '.join(map(str, crowds[0]))} train on one device "
            f"({cards[crowds[0][0]]}); NCCL refuses that. Give each rank a device of its own (tightwire.device()), or "
            "let messages cross pinned memory: attach(..., over='pinned')."
        )
