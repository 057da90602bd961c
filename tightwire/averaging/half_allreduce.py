"""An all-reduce in two halves that are moved apart."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tightwire.architecture import Runner, build
from tightwire.architecture.round import Round
from tightwire.buckets import Bucket
from tightwire.compression import Identity
from tightwire.compression.checks import FiniteCheck
from tightwire.transport import Transport

PROGRAMS = {"scatter": "reduce-scatter", "gather": "all-gather"}


class HalfAllReduce:
    """Averages a bucket halfway: each rank its own chunk, or every rank the chunks of all.

    Stands where an `BucketAverager` does; nothing is lossy, so nothing is remembered.

    Attributes:
        bucket: holds this worker's values before the scatter, and the mean after the gather.
    """

    def __init__(
        self, bucket: Bucket, half: Literal["scatter", "gather"], transport: Transport, *, tag: int
    ) -> None:
        """Allocates what rounds will need.

        Args:
            bucket: to average.
            half: which.
            transport: between the ranks.
            tag: tells runners over one transport apart; the same on every rank.
        """
        self.bucket = bucket
        self._check = FiniteCheck(bucket.layout.device)
        self._gathers = half == "gather"
        self._runner = Runner(
            build(PROGRAMS[half], transport.size),
            transport,
            numel=bucket.layout.numel,
            dtype=bucket.layout.dtype,
            codec=Identity(),
            tag=tag,
            device=bucket.layout.device,
        )

    @property
    def finite(self) -> bool:
        """Whether the mean is finite, the same on every rank; before the gather nobody knows, and it is True."""
        return bool(self._check)

    def bytes_in(self, round_number: int) -> int:
        """Returns the payload bytes that this rank sends in a round."""
        return self._runner.bytes_sent

    def run(self, now: Round) -> None:
        """Moves the half. Contract: as `Averager.run`; first the scatter, then the gather, on every rank."""
        flat = self.bucket.flat
        self._runner.run(flat, flat, seed=now.seed)
        if self._gathers:
            self._check.ask(flat)

    def keep(self) -> None:
        """Has learnt nothing."""

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """Returns nothing: see `keep`."""
        return {}
