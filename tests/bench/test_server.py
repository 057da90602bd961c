"""What the server bench makes of its workers' words; how fast anything is, it only prints."""

from __future__ import annotations

import pytest

from tightwire.bench.server import ServerBench, _summary
from tightwire.errors import PlanError


def bench(slow_rank: int = 2, slow_factor: float = 3.0, plans: tuple[str, ...] = ("asp/ps",)) -> ServerBench:
    return ServerBench(
        workers=3,
        rate_bytes_per_s=1e8,
        plans=plans,
        slow_rank=slow_rank,
        slow_factor=slow_factor,
        compute_s=0.1,
    )


def test_who_is_slow() -> None:
    assert [bench().wait_s(rank, 5) for rank in range(3)] == pytest.approx([0.1, 0.1, 0.3])
    wandering = bench(slow_rank=-1)
    slow = [[rank for rank in range(3) if wandering.wait_s(rank, step) > 0.2] for step in range(30)]
    assert all(len(ranks) == 1 for ranks in slow)
    assert {ranks[0] for ranks in slow} == {0, 1, 2}


@pytest.mark.parametrize("asked", [{"slow_rank": 3}, {"slow_factor": 0.5}, {"plans": ("ssp:3",)}])
def test_what_cannot_be_measured(asked: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        bench(**asked)  # type: ignore[arg-type]


def test_late_gradients_do_not_count() -> None:
    facts: list[dict[str, object]] = [
        {"steps": 20, "seconds": 2.0, "late": 0, "staleness": {"0": 20}},
        {"steps": 10, "seconds": 2.0, "late": 4, "staleness": {"0": 6, "2": 4}},
    ]
    row = _summary("backup:1/ps", facts)
    assert row["gradients_per_s"] == pytest.approx(13.0)
    assert row["steps_per_s"] == pytest.approx(10.0)
    assert row["late"] == 4
    assert row["staleness"] == {0: 26, 2: 4}
