"""What people put around a model, on the traced device: no race, and the CPU's numbers to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.traced.over_nccl import nccl
from tests.traced.training import TRACED, Net, same, train
from tightwire.errors import AttachError


class ChannelsLast(nn.Module):
    """Has parameters whose elements do not lie in memory as their indices count, and gradients likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()
        drawn = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(1))
        self.image = nn.Parameter(drawn.to(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        assert self.image.is_contiguous(memory_format=torch.channels_last)
        return self.inner(x * self.image.sum((1, 2, 3)).mean()) + (self.image * self.image).mean()  # type: ignore[no-any-return]


def checkpointed(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Forgets activations of the first layers, and computes them again in backward."""

    def first(x: Tensor) -> Tensor:
        return torch.tanh(model.b(torch.tanh(model.a(x))))  # type: ignore[operator]

    def forward(x: Tensor) -> Tensor:
        hidden = checkpoint(first, x, use_reentrant=False, preserve_rng_state=False)
        out: Tensor = model.c(hidden) * model.scale  # type: ignore[operator]
        return out

    return forward


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Traces forward and backward into graphs; no code is made for a device that is none."""
    return torch.compile(model, backend="aot_eager")


FEATURES: dict[str, dict[str, Any]] = {
    "activation checkpointing": {"call": checkpointed},
    "torch.compile": {"call": compiled},
    "channels last": {"make": ChannelsLast},
    "bfloat16 parameters": {"dtype": torch.bfloat16},
    "float16 parameters": {"dtype": torch.float16},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_around_a_model_changes_no_order(feature: str) -> None:
    plan = "bsp/allreduce:ring/int8+ef"
    expected = train(plan, "cpu", **FEATURES[feature])
    TRACED.restart(seed=4, haste=1.0)
    assert same(expected, train(plan, "traced", **FEATURES[feature]))
    assert not list(dict.fromkeys(map(str, TRACED.races)))


@pytest.mark.parametrize("feature", ["activation checkpointing", "channels last"])
def test_nor_does_it_beside_the_next_forward(feature: str) -> None:
    plan = "bsp/allreduce:ring/none/tictac"
    expected = train(plan, "cpu", **FEATURES[feature])
    TRACED.restart(seed=4, haste=1.0)
    assert same(expected, train(plan, "traced", **FEATURES[feature]))
    assert not TRACED.races


def test_compiled_code_that_hides_where_parameters_are_read_is_refused() -> None:
    TRACED.restart()
    with pytest.raises(AttachError, match="which compiled code hides"):
        train("bsp/allreduce:ring/none/tictac", "traced", call=compiled)


def test_bfloat16_over_nccl() -> None:
    plan, features = "bsp/allreduce:native", FEATURES["bfloat16 parameters"]
    expected = train(plan, "cpu", **features)
    TRACED.restart()
    assert same(expected, train(plan, "traced", reach=nccl(), **features))
    assert not TRACED.races
