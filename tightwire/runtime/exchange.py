"""The runtime that moves buckets: a communication thread per lane, driven by a scheduler."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from tightwire.architecture.round import Round
from tightwire.averaging.bucket import BucketAverager
from tightwire.buckets import Bucket
from tightwire.devices import DEVICES, Device, Mark
from tightwire.errors import DeviceError
from tightwire.runtime.spans import RoundTimes
from tightwire.runtime.trace import Tracer
from tightwire.schedule import Agenda, Scheduler
from tightwire.transport import Transport
from tightwire.transport.blame import Wait
from tightwire.transport.helpers import expendable, leave

# So often it is asked whether lanes that move nothing wait for one who is gone.
LOOK_S = 0.5


class Exchange:
    """Averages a set of buckets once per round, on threads of its own, in the scheduler's order.

    A round is `begin`, `ready` for each bucket as it fills, `end`, and `wait`, or `wait_for` each bucket and then
    `keep` it. Threads sleep between events and hold the interpreter lock only between transfers.

    Piece i goes by lane i mod `lanes`, over connections of the lane's own, and a lane moves one at a time: each is
    a queue whose order all ranks share, so that no order between lanes needs to be agreed.

    Contract: every rank runs the same rounds. Only `wait` and `wait_for` block; what a round sends is `bytes_in` it.

    Attributes:
        buckets: the memory, by number.
        averagers: one per piece of the agenda; where buckets move whole and in order, one per bucket.
        num_lanes: how many pieces may move at a time.
        spans_s: when each piece began and ended to be on its way in the last round, by one clock.
    """

    def __init__(
        self,
        averagers: Sequence[BucketAverager],
        scheduler: Scheduler,
        tracer: Tracer,
        *,
        buckets: Sequence[Bucket] | None = None,
        agenda: Agenda | None = None,
        channels: Sequence[Transport] = (),
        device: Device = DEVICES["cpu"],
        agree: Callable[[bool], bool] = bool,
        times: RoundTimes | None = None,
    ) -> None:
        """Starts the threads.

        Args:
            averagers: one per piece.
            scheduler: decides which piece starts next.
            tracer: where spans go.
            buckets: of which the pieces are parts; by default each piece is a bucket.
            agenda: says which, and how many lanes there are.
            channels: the lanes' connections, which end with it.
            device: where the buckets live: lanes follow who filled a bucket, and whoever waits follows the lanes.
            agree: from whether all means of a round are finite here, says whether they are finite everywhere; called
                in `wait`.
            times: is told, after each round, when its pieces were under way.
        """
        self._device, self._agree = device, agree
        self._at = averagers[0].bucket.layout.device if averagers else torch.device(device.kind)
        self._times = times or RoundTimes()
        self.averagers = tuple(averagers)
        self.buckets = tuple(buckets) if buckets is not None else tuple(a.bucket for a in averagers)
        self.spans_s = [(0.0, 0.0)] * len(self.averagers)
        self._bucket_of = (
            [p.bucket for p in agenda.pieces] if agenda is not None else list(range(len(averagers)))
        )
        self._pieces_of: list[list[int]] = [[] for _ in self.buckets]
        for piece, bucket in enumerate(self._bucket_of):
            self._pieces_of[bucket].append(piece)
        self._missing = [0] * len(self.buckets)
        self._filled: list[Mark | None] = [None] * len(self.buckets)
        self._moved: list[Mark | None] = [None] * len(self.averagers)
        self._channels = channels
        self._scheduler = scheduler
        self._tracer = tracer
        # Kept until the next round: on a device its scale is memory that lanes read, made on another stream.
        self._now = Round()
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.num_lanes = agenda.lanes if agenda else 1
        self._queues: list[deque[int]] = [deque() for _ in range(self.num_lanes)]
        self._threads = [
            threading.Thread(
                target=self._serve, args=(queue,), name=f"tightwire-communication-{lane}", daemon=True
            )
            for lane, queue in enumerate(self._queues)
        ]
        for thread in self._threads:
            thread.start()

    def bytes_in(self, round_number: int) -> int:
        """Returns the payload bytes that this rank sends in a round."""
        return sum(averager.bytes_in(round_number) for averager in self.averagers)

    def begin(self, now: Round) -> None:
        """Starts a round; no bucket is ready. All of the round before must have been waited for.

        Raises:
            AttachError: a graph of the device's work is being captured, of which averaging cannot be part.
        """
        self._device.require_order(self._at)
        with self._changed:
            self._now = now
            self._missing = [len(pieces) for pieces in self._pieces_of]
            self._filled = [None] * len(self.buckets)
            self._scheduler.begin()

    def ready(self, bucket: int) -> None:
        """Hands a filled bucket to the threads; its memory is theirs until it was waited for."""
        with self._changed:
            self._filled[bucket] = self._device.mark(self._at)
            self._scheduler.ready(bucket)
            self._dispatch()

    def end(self) -> None:
        """Tells that no more buckets will fill: all that are left move as they are."""
        with self._changed:
            now = self._device.mark(self._at)
            self._filled = [now if mark is None else mark for mark in self._filled]
            self._scheduler.end()
            self._dispatch()

    def wait(self, *, keep: bool = True) -> bool:
        """Waits until every bucket holds its mean.

        Args:
            keep: whether to keep what the round taught, if all means are finite; else the caller does, by bucket.

        Returns:
            Whether all means are finite; the same on every rank.

        Raises:
            TightwireError: whatever went wrong on a communication thread.
        """
        finite = self.arrive()()
        if finite and keep:
            for averager in self.averagers:
                averager.keep()
        return finite

    def arrive(self) -> Callable[[], bool]:
        """Waits until every bucket's mean is on its way into it: what this thread asks for next comes after it.

        Returns:
            Tells whether all means are finite, the same on every rank; asked before the next round begins. On a device
            whoever asks waits until they are there, so that whoever can asks later. Ranks that must talk to agree on it
            have done so.

        Raises:
            TightwireError: whatever went wrong on a communication thread.
        """
        self._await(lambda: not any(self._missing))
        self._follow(range(len(self.averagers)))
        self._require_sound()

        def is_finite() -> bool:
            return self._agree(all(averager.finite for averager in self.averagers))

        if self._device.is_host or self._agree is not bool:
            finite = is_finite()
            return lambda: finite
        return is_finite

    def wait_for(self, bucket: int) -> bool:
        """Waits until one bucket holds its mean; returns whether it is finite, the same on every rank.

        Raises:
            TightwireError: whatever went wrong on a communication thread.
        """
        self._await(lambda: self._missing[bucket] == 0)
        self._follow(self._pieces_of[bucket])
        self._require_sound()
        return all(self.averagers[piece].finite for piece in self._pieces_of[bucket])

    def keep(self, bucket: int) -> None:
        """Keeps what the round taught the stages and averagers of one bucket."""
        for piece in self._pieces_of[bucket]:
            self.averagers[piece].keep()

    def close(self) -> None:
        """Ends the threads and their connections; a transfer under way is left to its deadline."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            leave(thread, after_s=1.0)
        if not any(thread.is_alive() for thread in self._threads):
            for channel in self._channels:
                channel.close()

    def _require_sound(self) -> None:
        for channel in self._channels:
            channel.require_sound()

    def _await(self, condition: Callable[[], bool]) -> None:
        def is_over() -> bool:
            return self._failure is not None or condition()

        with self._changed:
            if not self._changed.wait_for(is_over, LOOK_S):
                self._await_long(is_over)
        if self._failure is not None:
            raise self._failure

    def _await_long(self, is_over: Callable[[], bool]) -> None:
        """Waits on, but not for lanes that never come back: those that got a part of a message from one who is gone."""
        wait = Wait(frozenset(), "for the means of its buckets")
        watches = [channel.watch(wait) for channel in self._channels[:1]]  # what one knows of ranks, all know
        try:
            while not self._changed.wait_for(is_over, LOOK_S):
                for watch in watches:
                    watch.check()
        finally:
            for watch in watches:
                watch.close()

    def _follow(self, pieces: Iterable[int]) -> None:
        """Has what this thread does next begin after what lanes did with the pieces."""
        for piece in pieces:
            if (mark := self._moved[piece]) is not None:
                self._device.follow(mark)

    def _dispatch(self) -> None:
        """Gives lanes what may start now; the caller holds the lock."""
        while (piece := self._scheduler.next()) is not None:
            self._queues[piece % len(self._queues)].append(piece)
        self._changed.notify_all()

    def _serve(self, queue: deque[int]) -> None:
        with expendable(), self._device.side(self._at):  # a stream of the lane's own
            self._move(queue)

    def _move(self, queue: deque[int]) -> None:
        while (piece := self._await_work(queue)) is not None:
            start_s = time.perf_counter()
            try:
                with self._tracer.span("communication", f"bucket {self._bucket_of[piece]}"):
                    if (filled := self._filled[self._bucket_of[piece]]) is not None:
                        self._device.follow(filled)
                    self._average(piece)
                    self._moved[piece] = self._device.mark(self._at)
            except BaseException as failure:  # whatever it is, the waiting thread must learn of it
                self._failure = failure
            self.spans_s[piece] = start_s, time.perf_counter()
            with self._changed:
                self._missing[self._bucket_of[piece]] -= 1
                if not any(self._missing) and self._failure is None:  # else they tell how it failed
                    self._times.note(self.spans_s)
                self._scheduler.done(piece)
                self._dispatch()

    def _average(self, piece: int) -> None:
        """Averages a piece; a device whose memory is full ends the run on all ranks, which are told at once."""
        try:
            self.averagers[piece].run(self._now)
        except torch.OutOfMemoryError as full:
            layout = self.averagers[piece].bucket.layout
            what = f"bucket {self._bucket_of[piece]} ({layout.num_bytes:,} bytes)"
            error = DeviceError(
                f"{layout.device} had no memory left while {what} was averaged. Nothing of this round was kept, and no "
                "parameter has changed: take a smaller batch, or a plan that holds less (stages such as +ef keep a "
                "copy of the gradients), and go on from a checkpoint."
            )
            for channel in self._channels:
                channel.fail(error)
            raise error from full

    def _await_work(self, queue: deque[int]) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(queue) or self._closed or self._failure is not None)
            return None if self._closed or self._failure is not None else queue.popleft()
