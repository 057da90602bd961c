from __future__ import annotations

from tightwire.bench.goodput import GoodputRow, StepMade, account
from tightwire.bench.goodput_page import timeline


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
    assert row.made == ((0, 2), (1, 2), (5, 1))


def test_the_page_has_a_band_for_each_plan_with_its_faults() -> None:
    free = GoodputRow(plan="bsp", faults=(), seconds=4, steps=8, samples=16, lost_rounds=0)
    faulty = GoodputRow(
        plan="bsp", faults=((1.5, "cut", 1),), seconds=4, steps=4, samples=6, lost_rounds=1, gaps_s=(2.0,),
        made=((0.0, 2), (0.5, 2), (3.0, 1), (3.5, 1)),
    )  # fmt: skip
    drawing = timeline([(free, faulty)] * 2, "Goodput")
    bars, calm, members = drawing.data[:3]
    assert list(bars.y) == [2, 0, 0, 2]
    assert list(calm.y) == [2, 2]
    assert list(members.y) == [2, 2, 1, 1]
    assert [list(one.x) for one in drawing.data if one.name == "cut"] == [[1.5]] * 2
    told = [note.text for note in drawing.layout.annotations]
    assert told == ["bsp: 50.0% of its fault-free throughput, 1 fault, longest gap 2.0 s"] * 2


def test_a_joiner_costs_what_its_step_took_longer_than_others_at_that_place() -> None:
    times = [0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 13.0]
    members = [2, 2, 2, 2, 2, 2, 3]
    seen = [
        StepMade(at_s=at_s, rank=0, step=number, lost=0, members=size)
        for number, (at_s, size) in enumerate(zip(times, members, strict=True), 2)
    ]
    assert account("local:2", seen, [], steps_per_round=2).joins_s == (4.0,)
