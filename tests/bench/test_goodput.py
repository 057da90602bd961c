from __future__ import annotations

from tightwire.bench.goodput import GoodputRow, account
from tightwire.bench.goodput_losses import SeenRun, StepMade, Usual
from tightwire.bench.goodput_page import timeline


def made(at_s: float, rank: int, step: int, lost: int = 0, members: int = 2, rounds: int = 0) -> StepMade:
    return StepMade(at_s=at_s, rank=rank, step=step, lost=lost, members=members, rounds=rounds or step)


def test_progress_leaves_out_lost_rounds_and_gaps_follow_faults() -> None:
    steps = [
        made(0, 0, 1),
        made(0, 1, 1),
        made(1, 0, 2),
        made(1, 1, 2),
        made(4, 0, 3, 1, 1),
        made(5, 0, 4, 1, 1),
    ]
    row = account("bsp", SeenRun(steps=steps, struck=[(1.5, "kill", 1)], noticed=[2.0, 2.5]))
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


def test_a_joiner_costs_what_its_step_and_the_next_exchange_took_longer() -> None:
    times = [0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 13.0, 14.0, 17.0]
    members = [2, 2, 2, 2, 2, 2, 3, 3, 3]
    steps = [
        made(at_s, 0, number, members=size, rounds=number // 2)
        for number, (at_s, size) in enumerate(zip(times, members, strict=True), 2)
    ]
    assert account("local:2", SeenRun(steps=steps), Usual(alone_s=1.0, exchanging_s=2.0)).joins_s == (5.0,)


def test_every_second_that_was_lost_has_one_cause() -> None:
    ends = [0.0, 1.0, 2.0, 7.0, 8.5, 12.5, 14.0]
    members = [2, 2, 2, 1, 1, 2, 2]
    steps = [
        made(at_s, 0, number, members=size)
        for number, (at_s, size) in enumerate(zip(ends, members, strict=True), 1)
    ]
    heard = SeenRun(steps=steps, struck=[(2.25, "freeze", 1)], noticed=[5.0, 5.5], entered=[6.0, 6.25])
    before, after = account("bsp", heard, Usual(alone_s=0.0, exchanging_s=1.0)).losses
    assert (before.fault, before.lost_s) == ("none", 0.0)
    assert after.detection_s == 2.0
    assert after.renewal_s == 1.25
    assert after.repeating_s == 0.75
    assert after.slower_s == 0.5
    assert after.joining_s == 3.5
    assert after.lost_s == ends[-1] - len(ends[1:])


def test_a_round_that_waits_is_no_exchange_yet() -> None:
    steps = [made(0.0, 0, 1), made(1.5, 0, 2), made(2.0, 0, 3, rounds=2), made(3.25, 0, 4, rounds=3)]
    heard = SeenRun(steps=steps, struck=[(0.25, "cut", 1)], noticed=[1.25], entered=[2.5])
    _, after = account("local:2", heard, Usual(alone_s=0.5, exchanging_s=1.0)).losses
    assert (after.detection_s, after.repeating_s, after.renewal_s) == (0.75, 0.25, 0.25)
