"""Count-sketches over a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.answers import Delivery
from tightwire.architecture.allreduce.exact import exact_runner
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import BucketLayout

if TYPE_CHECKING:
    from tightwire.transport import Transport

# Of the hashes whose estimates are subtracted. What an estimate has wrong stays in the leftover, where the same hashes
# find nothing of it; others would find it, add noise of their own, and the leftover would grow without bound.
LASTING = 0
STEPS = 1024  # of a share: coarse enough that the last bit of a sum, which processors round otherwise, is not in it


@final
class CountSketchAverager(StatelessAverager):
    """Averages one bucket by a summed sketch; see the method `sketch`."""

    delivery: Delivery = "selected"

    def __init__(
        self,
        transport: Transport,
        bucket: BucketLayout,
        *,
        table: tuple[int, int],
        kept: int,
        exact: bool,
        num_bytes: int,
        tag: int,
    ) -> None:
        """Allocates what runs will need.

        Args:
            transport: between the ranks.
            bucket: of which size and dtype.
            table: rows and columns of a sketch.
            kept: elements that are recovered.
            exact: whether values travel after places are found.
            num_bytes: what this rank sends in one run.
            tag: the first of two.
        """
        rows, columns = table
        self._size, self._exact, self._kept = transport.size, exact, kept
        self._table = torch.zeros(rows, columns, device=bucket.device)
        self._taken = torch.zeros(0 if exact else rows, columns, device=bucket.device)
        self._sketches = exact_runner(transport, self._table.numel(), torch.float32, tag, bucket.device)
        self._values = torch.zeros(kept, dtype=bucket.dtype, device=bucket.device)
        self._hitters = exact_runner(transport, kept, bucket.dtype, tag + 1, bucket.device)
        self._estimates = torch.zeros(bucket.numel, device=bucket.device)
        self._found = torch.empty(8 * kept, dtype=torch.uint8, device=bucket.device)
        self.bytes_sent = num_bytes

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Averages `bucket` into `mean`; see `Averager.run`."""
        if self._size == 1:
            mean.copy_(bucket)
            bucket.zero_()
            return
        if not self._exact:
            seed = LASTING
        flat = self._table.view(-1)
        kernels.of(bucket).add_to_sketch(bucket.float(), self._table.zero_(), seed)
        self._sketches.run(flat, flat)
        places, estimates = self._recover(seed)
        is_sound = bool(flat.isfinite().all())
        if self._exact:
            torch.index_select(bucket, 0, places, out=self._values)
            self._hitters.run(self._values, self._values)
            bucket.index_fill_(0, places, 0)
            mean.zero_().index_copy_(0, places, self._values)
        elif is_sound:
            limit = min(torch.finfo(mean.dtype).max, torch.finfo(torch.float32).max)
            taken = (self._share(places, estimates) * estimates).clamp(-limit, limit)
            mean.zero_().index_copy_(0, places, taken.to(mean.dtype))
            bucket.sub_(mean)
        if not is_sound:
            mean.fill_(torch.nan)

    def _recover(self, seed: int) -> tuple[Tensor, Tensor]:
        """Returns the k places of largest estimates, ascending, and the estimates."""
        loops = kernels.of(self._estimates)
        loops.estimate_from_sketch(self._table, self._estimates, seed)
        loops.select_largest(self._estimates, self._found, self._kept)
        places = self._found[: 4 * self._kept].view(torch.int32).long()
        return places, self._found[4 * self._kept :].view(torch.float32)

    def _share(self, places: Tensor, estimates: Tensor) -> float:
        """Returns the share of the estimates whose sketch leaves least of the table: it never grows by taking them.

        Elements at one place of the table are each estimated as all of it, and together they would take it many times.
        """
        self._estimates.zero_().index_copy_(0, places, estimates)
        kernels.of(self._estimates).add_to_sketch(self._estimates, self._taken.zero_(), LASTING)
        table, taken = self._table.view(-1).double(), self._taken.view(-1).double()
        share = float(table @ taken) / max(float(taken @ taken), torch.finfo(torch.float64).tiny)
        return round(min(max(share, 0.0), 1.0) * STEPS) / STEPS
