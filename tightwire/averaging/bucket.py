"""One bucket's way to its mean: through the stages of its compression, a reducer, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tightwire.answers import CompressionAnswer, Sender
from tightwire.architecture.round import Round
from tightwire.averaging.averager import Averager
from tightwire.averaging.method import AveragingMethod
from tightwire.buckets import Bucket
from tightwire.compression.checks import is_finite
from tightwire.compression.stage import Stage, StageMemory, sender_at, sender_of


class Spared:
    """Counts what rounds send less than was announced, because sizes depend on content: see `AveragingMethod.bounded`.

    Attributes:
        num_bytes: of this rank, so far.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Adds those of one bucket; from any thread."""
        with self._lock:
            self.num_bytes += num_bytes


class BucketAverager:
    """Averages one bucket in place, as its compression says.

    A round is run, then either kept or dropped: until `keep` is called what is remembered of the rounds before is
    untouched, so that a round which turned out non-finite (law 8) or was skipped leaves no trace. What is
    remembered, is in true units whatever the scale.

    Attributes:
        bucket: holds this worker's values before `run` and the mean after it.
        finite: whether the last mean was finite; the same on every rank.
    """

    def __init__(
        self,
        bucket: Bucket,
        compression: Sequence[CompressionAnswer],
        build: Callable[[Sender], Averager],
        *,
        workers: int,
        spared: Spared | None = None,
    ) -> None:
        """Allocates what rounds will need.

        Args:
            bucket: to average.
            compression: a codec or a reduction, and the stages around it.
            build: builds the bucket's reducer for whatever sends in a round; sends nothing.
            workers: how many ranks take part.
            spared: is told of what rounds send less than `bytes_in` them.
        """
        self.bucket = bucket
        self.finite = True
        self._spared = spared
        self._compression = tuple(compression)
        self._build = build
        self._main = build(sender_of(compression))
        self._reducer = self._main  # of the last run
        self._other: tuple[Sender, Averager] | None = None
        self._votes = isinstance(compression[0], AveragingMethod) and compression[0].votes
        self._memories = _memories(bucket, compression, workers)
        self._work = None if self._main.lossless and not self._memories else torch.zeros_like(bucket.flat)

    def bytes_in(self, round_number: int) -> int:
        """Returns the payload bytes that this rank sends in a round."""
        return self._reducer_at(round_number).bytes_sent

    def run(self, now: Round) -> None:
        """Replaces the bucket's values by their mean over all ranks.

        Contract: as `Averager.run`; the same round on every rank.
        """
        self._reducer = self._reducer_at(now.number)
        flat = self.bucket.flat
        if self._memories or self._votes:
            self._run_through_stages(flat, now)
        elif self._reducer.lossless:
            self._reducer.run(flat, flat, seed=now.seed)
        else:
            assert self._work is not None
            self._reducer.run(self._work.copy_(flat), flat, seed=now.seed)
        self.finite = is_finite(flat)
        if self._spared is not None:
            self._spared.add(getattr(self._reducer, "spared_bytes", 0))

    def keep(self) -> None:
        """Keeps what the last run taught stages and reducer."""
        self._reducer.keep()
        leftover = None if self._reducer.lossless or self._votes else self._work
        for memory in self._memories:
            leftover = memory.keep(leftover)
        if leftover is not None:
            self._work = leftover

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """Returns what is remembered by tensor name, then by what it is called; shares memory."""
        named: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._main.memory().items():
            named.setdefault(name, {})["reducer"] = tensor
        for memory in self._memories:
            for kind, flat in memory.kept().items():
                for name, view in Bucket(self.bucket.layout, flat).views.items():
                    named.setdefault(name, {})[kind] = view
        return named

    def _run_through_stages(self, flat: Tensor, now: Round) -> None:
        work = self._work
        assert work is not None
        if now.scale != 1.0:
            flat.div_(now.scale)
        x = flat
        for memory in self._memories:
            x = memory.before(x, work)
        if x is not work:
            work.copy_(x)
        self._reducer.run(work, flat, seed=now.seed)
        for memory in reversed(self._memories):
            memory.after(flat)
        if now.scale != 1.0:
            flat.mul_(now.scale)

    def _reducer_at(self, round_number: int) -> Averager:
        """Returns the round's reducer; at most one besides the plan's own is held, to bound memory."""
        sender = sender_at(self._compression, round_number)
        if sender == self._compression[0]:
            return self._main
        if self._other is None or self._other[0] != sender:
            self._other = (sender, self._build(sender))
        return self._other[1]


def _memories(
    bucket: Bucket, compression: Sequence[CompressionAnswer], workers: int
) -> tuple[StageMemory, ...]:
    """Returns what the stages remember, from the outside in."""
    stages = [stage for stage in reversed(compression) if isinstance(stage, Stage)]
    memories = (stage.memory(bucket.layout, workers) for stage in stages)
    return tuple(memory for memory in memories if memory is not None)
