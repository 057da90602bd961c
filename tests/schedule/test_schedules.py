"""Schedules: nothing lost, nothing twice, and an order that no arrival can change."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws.members import listed
from tightwire.catalogue import parse_member
from tightwire.errors import PlanError
from tightwire.schedule import Agenda, Fusion, Piece, Schedule, Sequential, Streaming, TensorFacts, fuse

SETTINGS = (
    "fusion:100B",
    "fusion:1B",
    "mgwfbp",
    "p3:128B",
    "bytescheduler:64B,credit_bytes=64B",
    "dear:200B",
)
# Fragments of a model, which streaming makes, are no partition of a backward pass.
SCHEDULES = [
    schedule
    for text in listed("schedule", Schedule, SETTINGS)
    if isinstance(schedule := parse_member("schedule", text), Schedule)
    and not isinstance(schedule, Streaming)
]

FACTS = st.lists(
    st.builds(
        TensorFacts,
        num_bytes=st.integers(0, 300),
        kind=st.sampled_from(["float32", "bfloat16"]),
        ready_s=st.floats(0, 1),
    ),
    max_size=20,
)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(FACTS)
def test_a_partition_takes_each_tensor_once(schedule: Schedule, tensors: list[TensorFacts]) -> None:
    partition = schedule.partition(tensors)
    assert sorted(p for bucket in partition for p in bucket) == list(range(len(tensors)))
    for bucket in partition:
        assert len({tensors[p].kind for p in bucket}) == 1
    assert schedule.partition(tensors) == partition


@given(FACTS, st.integers(1, 400))
def test_fused_buckets_are_full_and_not_much_fuller(tensors: list[TensorFacts], bucket_bytes: int) -> None:
    partition = fuse(tensors, bucket_bytes)
    sizes = [[tensors[p].num_bytes for p in bucket] for bucket in partition]
    for kind in ("float32", "bfloat16"):
        of_kind = [s for s, b in zip(sizes, partition, strict=True) if tensors[b[0]].kind == kind]
        for size in of_kind:
            assert sum(size[:-1]) < bucket_bytes
        assert all(sum(size) >= bucket_bytes for size in of_kind[:-1])
    assert [bucket[-1] for bucket in partition] == sorted(bucket[-1] for bucket in partition)


def test_the_first_of_the_usual_buckets_is_small_as_in_ddp() -> None:
    mebibyte = 2**20
    tensors = [TensorFacts(num_bytes=mebibyte // 2, kind=kind) for kind in "ab" for _ in range(5)]
    assert Fusion().partition(tensors) == ((0, 1), (2, 3, 4), (5, 6), (7, 8, 9))
    coded = [dataclasses.replace(tensor, is_exact=False) for tensor in tensors]
    assert Fusion().partition(coded) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
    assert Fusion(2 * mebibyte).partition(tensors) == ((0, 1, 2, 3), (4,), (5, 6, 7, 8), (9,))


def test_one_bucket_per_kind_without_a_limit() -> None:
    tensors = [TensorFacts(num_bytes=8, kind=k) for k in "abab"]
    assert fuse(tensors, math.inf) == ((0, 2), (1, 3))


@st.composite
def passes(draw: st.DrawFn) -> tuple[int, list[list[int | None]]]:
    """A number of buckets and, for some backward passes, which became ready in which order; None asks."""
    num_buckets = draw(st.integers(0, 8))
    rounds = []
    for _ in range(draw(st.integers(1, 3))):
        arrivals = draw(st.permutations(range(num_buckets)))
        arrived: list[int | None] = list(arrivals[: draw(st.integers(0, num_buckets))])
        for _ in range(draw(st.integers(0, 4))):
            arrived.insert(draw(st.integers(0, len(arrived))), None)
        rounds.append(arrived)
    return num_buckets, rounds


def whole_buckets(num_buckets: int) -> Agenda:
    pieces = tuple(Piece(bucket=number, start=0, stop=4) for number in range(num_buckets))
    return Agenda(pieces=pieces)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@settings(max_examples=40)
@given(passes())
def test_every_bucket_moves_once_per_pass_in_one_order(
    schedule: Schedule, case: tuple[int, list[list[int | None]]]
) -> None:
    num_buckets, rounds = case
    scheduler = schedule.pacer(whole_buckets(num_buckets))
    for arrivals in rounds:
        scheduler.begin()
        moved: list[int] = []
        ready: set[int] = set()
        for event in arrivals:
            if event is not None:
                ready.add(event)
                scheduler.ready(event)
            elif (bucket := scheduler.next()) is not None:
                moved.append(bucket)
                assert bucket in ready
        scheduler.end()
        while (bucket := scheduler.next()) is not None:
            moved.append(bucket)
        assert moved == list(range(num_buckets))
        assert scheduler.next() is None


def test_sequential_waits_for_the_end_and_the_others_do_not() -> None:
    for schedule in SCHEDULES:
        scheduler = schedule.pacer(whole_buckets(2))
        scheduler.begin()
        scheduler.ready(0)
        assert scheduler.next() == (None if isinstance(schedule, Sequential) else 0)


def test_buckets_have_a_size() -> None:
    with pytest.raises(PlanError, match="at least 1 byte"):
        Fusion(0)
