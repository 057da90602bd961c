"""What a run measures of leftovers and of drift, over what would be expected of unrelated gradients."""

from __future__ import annotations

import pytest
import torch

from tests.laws.test_errors import Alone
from tightwire.architecture.round import Round
from tightwire.averaging import BucketAverager
from tightwire.buckets import Bucket, plan_layout
from tightwire.catalogue import parse_compression
from tightwire.runtime.departures import drift_over_expected, leftover_over_expected, squared_leftover


@pytest.mark.parametrize(("text", "repeats", "ratio"), [
    ("randomk:0.5+ef", False, 1.0),
    # Of one gradient again and again E|e|² = (E|e|² + 2·E|e| + 1)/2 with E|e| = 1, so 3, in place of 1.
    ("randomk:0.5+ef", True, 3.0),
])  # fmt: skip
def test_a_leftover_is_what_unrelated_gradients_leave_or_more(text: str, repeats: bool, ratio: float) -> None:
    generator = torch.Generator().manual_seed(0)
    (layout,) = plan_layout({"w": torch.empty(4096)}, [[0]])
    averager = BucketAverager(Bucket(layout), parse_compression(text), Alone, workers=1)
    told = []
    for number in range(1, 25):
        drawn = torch.ones(4096) if repeats else torch.randn(4096, generator=generator)
        averager.bucket.flat.copy_(drawn)
        averager.run(Round(number=number, seed=number))
        averager.keep()
        told.append((float(drawn.square().sum()), squared_leftover([averager])))
    assert leftover_over_expected(told) == pytest.approx(ratio, rel=0.1)


def test_too_little_tells_nothing() -> None:
    assert leftover_over_expected([(1.0, 0.5)]) is None
    assert leftover_over_expected([(1.0, 0.0), (1.0, 0.0)]) is None
    assert leftover_over_expected([(1.0, 0.5), (1.0, float("nan"))]) is None
    assert drift_over_expected(1.0, 1.0, steps=8, workers=1, noise=0.5) is None


def test_replicas_drift_as_far_as_noise_takes_them_and_further_where_data_differ() -> None:
    """Steps along a gradient and noise of every worker's own; and the same with a direction of its own for each."""
    generator = torch.Generator().manual_seed(0)
    workers, steps, numel = 4, 8, 20_000
    signal = torch.ones(numel)
    for own, above in ((0.0, 1.0), (1.0, 2.0)):
        biases = own * torch.randn(workers, numel, generator=generator)
        noises = 2.0 * torch.randn(workers, steps, numel, generator=generator)
        changes = (signal + biases[:, None] + noises).sum(1)
        mean = changes.mean(0)
        apart = float((changes - mean).square().sum(1).mean())
        noise = 4.0 / workers  # variance of the mean over the squared norm of the gradient
        found = drift_over_expected(
            apart, float(mean.square().sum()), steps=steps, workers=workers, noise=noise
        )
        assert found is not None
        assert found == pytest.approx(1.0, rel=0.05) if above == 1.0 else found > above
