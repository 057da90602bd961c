"""Schedules that merge, slice and overtake: optimal where they say so, and one order whatever becomes ready when."""

import itertools
import random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.schedule import (
    P3,
    Agenda,
    AscWfbp,
    BucketFacts,
    ByteScheduler,
    DeAR,
    MgWfbp,
    Pace,
    Schedule,
    TensorFacts,
    TicTac,
    Wire,
)
from tightwire.schedule.merging import merge

SCHEDULES: list[Schedule] = [
    MgWfbp(),
    AscWfbp(2),
    P3(128),
    TicTac(),
    ByteScheduler(128, 300),
    ByteScheduler(64, 64),
    ByteScheduler(256, 512, 100),
    Pace(256),
    DeAR(200),
]
WIRES = st.builds(Wire, latency_s=st.floats(1e-4, 0.3), bytes_per_s=st.floats(50, 5000))
TENSORS = st.lists(
    st.builds(
        TensorFacts, num_bytes=st.integers(0, 300), kind=st.sampled_from("ab"), ready_s=st.floats(0, 1)
    ),
    max_size=12,
)
BUCKETS = st.lists(
    st.builds(BucketFacts, num_bytes=st.integers(0, 900), ready_s=st.floats(0, 1), divisible=st.booleans()),
    max_size=9,
)


def ends_s(tensors: list[TensorFacts], runs: list[tuple[int, int]], wire: Wire) -> float:
    now_s = 0.0
    for start, stop in runs:
        ready_s = max(t.ready_s for t in tensors[:stop])
        now_s = max(now_s, ready_s) + wire.seconds(sum(t.num_bytes for t in tensors[start:stop]))
    return now_s


@given(TENSORS.filter(lambda tensors: len(tensors) <= 9), WIRES)
def test_merging_is_the_best_of_all_ways_to_merge(tensors: list[TensorFacts], wire: Wire) -> None:
    n = len(tensors)
    best = min(
        (
            ends_s(tensors, list(itertools.pairwise((0, *cuts, n))), wire)
            for size in range(n)
            for cuts in itertools.combinations(range(1, n), size)
        ),
        default=0.0,
    )
    assert ends_s(tensors, merge(tensors, wire), wire) == pytest.approx(best, abs=1e-12)


def test_merging_is_the_papers_on_its_extremes() -> None:
    """Without latency tensors stay alone; with a latency beyond all ready times they are one."""
    tensors = [TensorFacts(num_bytes=10, ready_s=0.1 * i) for i in range(1, 6)]
    assert MgWfbp().partition(tensors, Wire(latency_s=1e-9, bytes_per_s=1e3)) == (
        (0,),
        (1,),
        (2,),
        (3,),
        (4,),
    )
    assert MgWfbp().partition(tensors, Wire(latency_s=10.0, bytes_per_s=1e3)) == ((0, 1, 2, 3, 4),)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(TENSORS, st.none() | WIRES)
def test_a_partition_takes_each_tensor_once(
    schedule: Schedule, tensors: list[TensorFacts], wire: Wire | None
) -> None:
    partition = schedule.partition(tensors, wire)
    assert sorted(p for bucket in partition for p in bucket) == list(range(len(tensors)))
    for bucket in partition:
        assert len({tensors[p].kind for p in bucket}) == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(BUCKETS, st.none() | WIRES)
def test_pieces_are_the_buckets(schedule: Schedule, buckets: list[BucketFacts], wire: Wire | None) -> None:
    agenda = schedule.agenda(buckets, wire)
    for phase in {piece.phase for piece in agenda.pieces}:
        for number, bucket in enumerate(buckets):
            pieces = [p for p in agenda.pieces if p.bucket == number and p.phase == phase]
            bounds = sorted((p.start, p.stop) for p in pieces)
            assert bounds[0][0] == 0
            assert bounds[-1][1] == bucket.num_bytes
            assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
            assert bucket.divisible or len(pieces) == 1
            assert all(p.start % 64 == 0 for p in pieces)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@settings(max_examples=30)
@given(BUCKETS, st.randoms(use_true_random=False))
def test_random_events_lose_nothing_and_keep_to_order_and_credit(
    schedule: Schedule, buckets: list[BucketFacts], chance: random.Random
) -> None:
    agenda = schedule.agenda(buckets)
    scheduler = schedule.pacer(agenda)
    for _ in range(2):
        scheduler.begin()
        waiting, under_way, started = list(range(len(buckets))), [], []
        ready: set[int] = set()
        chance.shuffle(waiting)
        while len(started) < len(agenda.pieces) or under_way:
            action = chance.choice(["ready", "next", "done"])
            if action == "ready" and waiting:
                ready.add(waiting[-1])
                scheduler.ready(waiting.pop())
            elif action == "done" and under_way:
                scheduler.done(under_way.pop(chance.randrange(len(under_way))))
            elif action == "next" and (piece := scheduler.next()) is not None:
                assert agenda.pieces[piece].bucket in ready
                started.append(piece)
                under_way.append(piece)
                sizes = [agenda.pieces[p].num_bytes for p in under_way]
                assert len(sizes) == 1 or sum(sizes) <= agenda.credit_bytes
            if not waiting:
                scheduler.end()
        assert started == list(range(len(agenda.pieces)))
        assert scheduler.next() is None


def test_ranks_that_finish_in_different_orders_never_block_each_other() -> None:
    """Two ranks, programs that end only once both began them, credit for two: random ready and end orders."""
    chance = random.Random(0)
    buckets = [BucketFacts(num_bytes=128, ready_s=0.1 * i) for i in range(1, 7)]
    schedule = ByteScheduler(64, 128)
    agenda = schedule.agenda(buckets)
    for _ in range(200):
        _race(agenda, schedule, chance)


def _race(agenda: Agenda, schedule: Schedule, chance: random.Random) -> None:
    ranks = [schedule.pacer(agenda) for _ in range(2)]
    begun: list[set[int]] = [set(), set()]
    ended: list[set[int]] = [set(), set()]
    unready = [chance.sample(range(6), 6) for _ in ranks]
    for _ in range(2000):
        rank = chance.randrange(2)
        if unready[rank] and chance.random() < 0.3:
            ranks[rank].ready(unready[rank].pop())
        if (piece := ranks[rank].next()) is not None:
            begun[rank].add(piece)
        both = [p for p in begun[0] & begun[1] if p not in ended[rank]]
        if both and chance.random() < 0.5:
            piece = chance.choice(both)
            ended[rank].add(piece)
            ranks[rank].done(piece)
        if all(len(e) == len(agenda.pieces) for e in ended):
            return
    pytest.fail(f"stuck: {begun}, {ended}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p3:0", "all latency"),
        ("bytescheduler:0", "all latency"),
        ("bytescheduler:4MiB,1MiB", "never lets a slice"),
        ("bytescheduler:1MiB,2MiB,2MiB", "cut again"),
        ("pace:1", "all latency"),
        ("dear:0", "no size"),
        ("ascwfbp:0", "1 to 8"),
    ],
)
def test_sizes_that_cannot_work(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(f"bsp/allreduce/none/{text}")


@pytest.mark.parametrize("text", ["p3:1MiB", "bytescheduler:1000000,2000000", "pace:1MiB"])
def test_slices_larger_than_everything_are_remarked_on_and_cut_nothing(text: str) -> None:
    schedule = cast(Schedule, Plan.parse(f"bsp/allreduce/none/{text}").schedule)
    buckets = [BucketFacts(num_bytes=n, ready_s=0.1 * n) for n in (600, 1448)]
    assert {(p.start, p.stop) for p in schedule.agenda(buckets).pieces} == {(0, 600), (0, 1448)}
    remark = schedule.remark(2048)
    assert remark is not None
    assert "all gradients together are 2,048 bytes" in remark
    assert schedule.remark(2**20) is None


@pytest.mark.parametrize("schedule", [P3(), ByteScheduler(), Pace(), TicTac(), MgWfbp()], ids=str)
def test_defaults_suit_small_models_without_a_word(schedule: Schedule) -> None:
    assert schedule.remark(64) is None


@pytest.mark.parametrize(
    "text",
    ["local:4/allreduce/none/p3", "bsp/allreduce/int8/dear", "bsp/allreduce:recursive-doubling/none/dear"],
)
def test_what_cannot_overlap_names_what_can(text: str) -> None:
    with pytest.raises(PlanError, match="Nearest legal: ") as caught:
        Plan.parse(text)
    nearest = str(caught.value).partition("Nearest legal: ")[2].rstrip(".").split(", or ")
    for legal in nearest:
        Plan.parse(legal)
