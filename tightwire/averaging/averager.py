"""The averager contract: the unit of lossy averaging."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tightwire.answers import Delivery


class Averager(Protocol):
    """Agrees with the other ranks on the mean of a bucket.

    What an averager remembers from run to run changes only when it is told to keep a run: one that is followed by
    another without `keep` leaves no trace.

    Attributes:
        lossless: the mean is exact up to rounding; `bucket` and `mean` may be the same memory.
        delivery: what arrives of a bucket.
        error: the relative squared error of the mean of independent gradients that it declares (law 14), or None
            where it declares none.
        bytes_sent: payload bytes that this rank sends in one run, known beforehand; where sizes depend on content,
            the most that it may send.
        spared_bytes: how much less than that it sends in the run under way or just over.
    """

    @property
    def lossless(self) -> bool: ...  # noqa: D102

    @property
    def delivery(self) -> Delivery: ...  # noqa: D102

    @property
    def error(self) -> float | None: ...  # noqa: D102

    @property
    def bytes_sent(self) -> int: ...  # noqa: D102

    @property
    def spared_bytes(self) -> int: ...  # noqa: D102

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` over all ranks into `mean`, and leaves in `bucket` what this rank failed to carry.

        Contract: blocks; called by every rank, in the same order per transport, with the same `seed`. Afterwards
        mean == average over ranks of (input − leftover), bit-identical on every rank. A non-finite input on any
        rank makes `mean` non-finite on all. Lossless averagers write no leftover: it is zero.

        Raises:
            PeerError: a rank did not take part within the deadline.
        """

    def keep(self) -> None:
        """Remembers what the last run learnt. Local."""

    def memory(self) -> dict[str, Tensor]:
        """Returns what is remembered, by tensor name, to be saved or written to: it shares memory."""


class StatelessAverager:
    """What averagers share that lose something and remember nothing from run to run; to be subclassed."""

    lossless = False
    delivery: Delivery = "rounded"
    error: float | None = None
    spared_bytes = 0

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}
