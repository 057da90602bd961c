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
    row = account("bsp", seen, [(1.5, "kill", 1)], [2.0, 2.5])
    assert row.steps == 3  # step 3 was made with nothing
    assert row.samples == 2 + 2 + 1
    assert row.lost_rounds == 1
    assert row.gaps_s == (3.5,)
    assert row.idle_s == (3.0,)  # from when the first noticed
    assert row.waited_s == 1.0
    assert row.steps_per_s == 3 / 5


def test_a_joiner_costs_what_its_step_took_longer_than_others_at_that_place() -> None:
    times = [0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 13.0]
    members = [2, 2, 2, 2, 2, 2, 3]
    seen = [
        StepMade(at_s=at_s, rank=0, step=number, lost=0, members=size)
        for number, (at_s, size) in enumerate(zip(times, members, strict=True), 2)
    ]
    assert account("local:2", seen, [], steps_per_round=2).joins_s == (4.0,)
