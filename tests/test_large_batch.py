"""The large-batch rules, and where the layer-wise optimizers come from."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.training import same, train_all
from tightwire.errors import PlanError
from tightwire.large_batch import growing_batch, linear_scaling


def test_linear_scaling_in_a_torch_scheduler() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_scaling(4, warmup_steps=3))
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_the_batch_grows_instead_of_the_rate_decaying() -> None:
    sizes = growing_batch(32, at=(10, 20), by=5, most=400)
    assert [sizes(step) for step in (0, 9, 10, 19)] == [(32, 1.0), (32, 1.0), (160, 1.0), (160, 1.0)]
    assert sizes(20) == (400, pytest.approx(0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_scaling(0),
        lambda: linear_scaling(4, warmup_steps=-1),
        lambda: growing_batch(0, at=(), by=2, most=8),
        lambda: growing_batch(16, at=(), by=2, most=8),
        lambda: growing_batch(8, at=(3,), by=1, most=8),
        lambda: growing_batch(8, at=(3, 2), by=2, most=8),
    ],
)
def test_rules_that_cannot_be(make: object) -> None:
    with pytest.raises(PlanError, match="cannot be"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["LARS", "Lamb"])
@pytest.mark.parametrize("plan", ["bsp", "diloco:2"])
def test_layer_wise_optimizers_of_a_library(name: str, plan: str) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    results = train_all(3, plan, optimizer=lambda parameters: getattr(library, name)(parameters, lr=0.01))
    assert all(same(trained.parameters, results[0].parameters) for trained in results)
