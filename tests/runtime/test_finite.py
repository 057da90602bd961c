"""Whether gradients are finite, as every engine asks before a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.runtime.engines.memory import drop_unless_finite, have_finite_gradients

KINDS: dict[str, Callable[[], Tensor]] = {
    "small": lambda: torch.ones(3),
    "large": lambda: torch.ones(200, 1000),
    "of odd size": lambda: torch.ones(4099),
    "transposed": lambda: torch.ones(5, 7).T,
    "double": lambda: torch.ones(9, dtype=torch.float64),
    "bf16": lambda: torch.ones(70_000, dtype=torch.bfloat16),
}


def parameters(gradients: list[Tensor]) -> list[Parameter]:
    made = [Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = gradient
    return [Parameter(torch.zeros(2)), *made]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_found_wherever_it_is(bad: float, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for spoiled in range(len(KINDS)):
            for place in (0, -1):
                gradients = [make() for make in KINDS.values()]
                assert have_finite_gradients(parameters(gradients))
                gradients[spoiled][(place,) * gradients[spoiled].dim()] = bad
                assert not have_finite_gradients(parameters(gradients))
    finally:
        torch.set_num_threads(before)


def test_opposite_infinities_do_not_cancel() -> None:
    assert not have_finite_gradients(parameters([torch.tensor([math.inf, 1.0, -math.inf, 0.0, 2.0])]))


def test_a_sum_that_overflows_is_no_bad_element() -> None:
    assert have_finite_gradients(parameters([torch.full((8,), 3e38), torch.ones(2)]))


def test_nothing_is_finite_and_bad_gradients_are_dropped() -> None:
    assert have_finite_gradients(parameters([torch.zeros(0)]))
    trained = parameters([torch.tensor([math.nan]), torch.ones(2)])
    assert drop_unless_finite(trained)
    assert [p.grad for p in trained] == [None] * 3
