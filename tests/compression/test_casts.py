"""Sums of float16 fit, and what does not is seen by a loss scaler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.laws.test_stages import tensors_of
from tightwire.architecture import AllReduce
from tightwire.architecture.round import Round
from tightwire.averaging import BucketAverager, build_averager
from tightwire.buckets import Bucket, plan_layout
from tightwire.catalogue import parse_compression
from tightwire.transport import Transport, run_threads


def mean_of(transport: Transport, program: str, value: float, scale: float) -> tuple[Tensor, bool]:
    tensors = tensors_of()
    (layout,) = plan_layout(tensors, [range(len(tensors))])
    compression = parse_compression("fp16")
    a = BucketAverager(
        Bucket(layout),
        compression,
        lambda sender: build_averager(AllReduce(program), sender, transport, bucket=layout, number=0),
        workers=transport.size,
    )
    a.bucket.flat.fill_(value)
    a.run(Round(scale=scale))
    return a.bucket.flat, a.finite


@pytest.mark.parametrize("program", ["auto", "ring", "direct", "halving-doubling", "native", "allgather"])
@pytest.mark.parametrize("n", [3, 8])
def test_sums_are_not_cut(program: str, n: int) -> None:
    """A gradient of 0.25 at a scale of 65536: eight of them are beyond what float16 holds."""
    for mean, finite in run_threads(n, lambda t: mean_of(t, program, 16384.0, 65536.0), deadline_s=20):
        assert finite
        torch.testing.assert_close(mean, torch.full_like(mean, 16384.0), rtol=1e-3, atol=0)


def test_what_is_beyond_the_format_is_infinite_where_a_scaler_watches() -> None:
    def worker(transport: Transport) -> tuple[bool, float, bool]:
        rank = transport.rank
        _, watched = mean_of(transport.channel(), "auto", 1e5 if rank == 1 else 1.0, 65536.0)
        mean, alone = mean_of(transport.channel(), "auto", 6.6e4, 1.0)
        return watched, float(mean.max()), alone

    for watched, largest, alone in run_threads(2, worker, deadline_s=20):
        assert not watched
        assert alone
        assert largest <= 66000.0
