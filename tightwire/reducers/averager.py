"""One bucket's way to its mean, and what is kept of it from round to round."""

from __future__ import annotations

import torch
from torch import Tensor

from tightwire.buckets import Bucket
from tightwire.reducers.reducer import Reducer


class Averager:
    """Averages one bucket in place; with error feedback, what was not sent joins the next round.

    A round is run, then either kept or dropped: until `keep` is called the leftovers of the round before are
    untouched, so that a round which turned out non-finite (law 8) or was skipped leaves no trace.

    Attributes:
        bucket: holds this worker's values before `run` and the mean after it.
        finite: whether the last mean was finite; the same on every rank.
    """

    def __init__(self, bucket: Bucket, reducer: Reducer, *, feedback: bool) -> None:
        self.bucket = bucket
        self.reducer = reducer
        self.finite = True
        self._work = None if reducer.lossless else torch.zeros_like(bucket.flat)
        self._leftover = torch.zeros_like(bucket.flat) if feedback else None

    def run(self, *, seed: int, scale: float = 1.0) -> None:
        """Replaces the bucket's values by their mean over all ranks.

        Args:
            seed: of stochastic codecs, the same on every rank.
            scale: the values are this many times their true size (AMP loss scaling); leftovers are kept unscaled.

        Contract: as `Reducer.run`.
        """
        flat = self.bucket.flat
        if self._work is None:
            self.reducer.run(flat, flat, seed=seed)
        else:
            self._load_work(flat, scale)
            self.reducer.run(self._work, flat, seed=seed)
            if self._leftover is not None and scale != 1.0:
                self._work.div_(scale)
        self.finite = is_finite(flat)

    def keep(self) -> None:
        """Keeps the leftover of the last run for the next one, and what the reducer learnt."""
        self.reducer.keep()
        if self._leftover is not None and self._work is not None:
            self._leftover, self._work = self._work, self._leftover

    def leftovers(self) -> dict[str, Tensor]:
        """Returns the kept leftovers by tensor name, sharing memory; empty without error feedback."""
        return {} if self._leftover is None else Bucket(self.bucket.layout, self._leftover).views

    def _load_work(self, flat: Tensor, scale: float) -> None:
        assert self._work is not None
        if self._leftover is None:
            self._work.copy_(flat)
        else:
            torch.add(flat, self._leftover, alpha=scale, out=self._work)


def is_finite(flat: Tensor) -> bool:
    """Whether every element is finite, in one pass that allocates nothing."""
    if flat.numel() == 0:
        return True
    low, high = torch.aminmax(flat)  # a NaN anywhere makes both NaN
    return bool(low.isfinite() & high.isfinite())
