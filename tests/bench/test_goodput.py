from __future__ import annotations

from tightwire.bench.goodput import StepMade, account


def test_progress_leaves_out_lost_rounds_and_gaps_follow_faults() -> None:
    def step(at_s: float, rank: int, number: int, lost: int = 0, members: int = 2) -> StepMade:
        return StepMade(at_s=at_s, rank=rank, step=number, lost=lost, members=members)

    seen = [
        step(0, 0, 1),
        step(0, 1, 1),
        step(1, 0, 2),
        step(1, 1, 2),
        step(4, 0, 3, 1, 1),
        step(5, 0, 4, 1, 1),
    ]
    row = account("bsp", seen, [(1.5, "kill", 1)])
    assert row.steps == 3  # step 3 was made with nothing
    assert row.samples == 2 + 2 + 1
    assert row.lost_rounds == 1
    assert row.gaps_s == (3.5,)
    assert row.waited_s == 1.0
    assert row.steps_per_s == 3 / 5
