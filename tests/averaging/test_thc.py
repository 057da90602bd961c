"""THC: sums of a table's integers, and the error that its paper's construction promises."""

from __future__ import annotations

import pytest
import torch

from tightwire.averaging import THC
from tightwire.averaging.thc import best_table
from tightwire.buckets import plan_layout
from tightwire.errors import PlanError
from tightwire.transport import Transport, run_threads

NUMEL, WORKERS = 20_000, 4


@pytest.mark.parametrize("text", [{}, {"bits": 2, "granularity": 9}, {"bits": 4, "granularity": 15}])
def test_the_error_of_the_mean_is_as_declared_and_no_bias_is_large(text: dict[str, int]) -> None:
    method, given = THC(**text), torch.randn(WORKERS, NUMEL, generator=torch.Generator().manual_seed(0))

    def worker(transport: Transport) -> torch.Tensor:
        (layout,) = plan_layout({"x": given[0]}, [[0]])
        averager, means = method.build(transport, layout, tag=0), []
        for seed in range(6):
            mean = torch.empty(NUMEL)
            averager.run(given[transport.rank].clone(), mean, seed=seed)
            means.append(mean)
        return torch.stack(means)

    means, exact = run_threads(WORKERS, worker, deadline_s=20)[0], given.mean(0)
    error = float((means - exact).square().sum(1).mean() / exact.square().sum())
    assert error == pytest.approx(method.error, rel=0.1)
    assert float((means.mean(0) - exact).square().sum() / exact.square().sum()) < error / 3


def test_a_coarser_grid_of_as_many_levels_is_worse() -> None:
    assert THC().error < THC(granularity=15).error
    assert len(THC().table) == 16
    assert THC(granularity=15).table == tuple(range(16))


def test_tables_are_symmetric_and_even_where_they_must_be() -> None:
    table, _ = best_table(16, 30, 2.15)
    assert table == tuple(30 - level for level in reversed(table))
    assert table[0] == 0


def test_bytes_are_four_bits_up_and_what_sums_need_down() -> None:
    """At 8 workers sums of 8 · 30 take 8 bits, as in the paper."""
    numel = 1 << 20
    assert THC().bytes_sent([(numel,)], 4, 8, 0) == 7 * 4 * 256 + 7 * numel // 8 // 2 + 7 * numel // 8


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"granularity": 14}, {"p": 0.0}, {"block": 100}])
def test_what_cannot_be_says_why(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="thc"):
        THC(**wrong)  # type: ignore[arg-type]
