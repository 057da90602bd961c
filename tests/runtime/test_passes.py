"""Forward passes that no backward pass follows are counted, and nothing is kept of the others."""

from __future__ import annotations

import gc

import torch
from torch import nn

from tightwire.runtime import passes
from tightwire.runtime.passes import ForwardWatch
from tightwire.runtime.trace import Tracer


def watched() -> tuple[nn.Module, ForwardWatch]:
    model = nn.Linear(2, 2)
    return model, ForwardWatch(model, Tracer())


def test_nothing_is_kept_of_passes_that_nobody_judges() -> None:
    """As under asynchronous plans, where no two ranks are at the same step."""
    model, watch = watched()
    for _ in range(50):
        model(torch.ones(1, 2)).sum().backward()
    assert not [o for o in gc.get_objects() if type(o) is passes._Reached and o._watch is watch]


def test_a_pass_that_is_left_out_counts_once() -> None:
    model, watch = watched()
    outputs = [model(torch.ones(1, 2)) for _ in range(3)]
    outputs[0].sum().backward()
    assert watch.judge() == 2
    outputs[1].sum().backward()  # too late: ranks have compared their counts
    assert watch.judge() == 2
    model(torch.ones(1, 2))
    watch.forgive()
    assert watch.judge() == 2


def test_of_several_outputs_one_is_enough() -> None:
    model, watch = watched()
    model.register_forward_hook(lambda module, args, output: (output, output * 2))
    watch.close()
    watch = ForwardWatch(model, Tracer())
    first, second = model(torch.ones(1, 2))
    (first.sum() + second.sum()).backward()
    assert watch.judge() == 0
