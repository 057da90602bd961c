"""The reducer contract: the unit of lossy averaging."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Averager(Protocol):
    """Agrees with the other ranks on the mean of a bucket.

    What a reducer remembers from run to run changes only when it is told to keep a run: one that is followed by
    another without `keep` leaves no trace.

    Attributes:
        lossless: the mean is exact up to rounding; `bucket` and `mean` may be the same memory.
        bytes_sent: payload bytes that this rank sends in one run, known beforehand.
    """

    @property
    def lossless(self) -> bool: ...  # noqa: D102

    @property
    def bytes_sent(self) -> int: ...  # noqa: D102

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` over all ranks into `mean`, and leaves in `bucket` what this rank failed to carry.

        Contract: blocks; called by every rank, in the same order per transport, with the same `seed`. Afterwards
        mean == average over ranks of (input − leftover), bit-identical on every rank. A non-finite input on any
        rank makes `mean` non-finite on all. Lossless reducers write no leftover: it is zero.

        Raises:
            PeerError: a rank did not take part within the deadline.
        """

    def keep(self) -> None:
        """Remembers what the last run learnt. Local."""

    def memory(self) -> dict[str, Tensor]:
        """Returns what is remembered, by tensor name, to be saved or written to: it shares memory."""
