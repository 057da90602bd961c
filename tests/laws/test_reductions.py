"""Laws 1, 2, 5, 8 and 9 for every reduction: the methods that talk while they compress."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.laws.members import listed, told
from tightwire.architecture import AllReduce
from tightwire.averaging import Averager, AveragingMethod, build_averager
from tightwire.buckets import BucketLayout, plan_layout
from tightwire.catalogue import catalogue, parse_compression
from tightwire.transport import Counting, Transport, run_threads

SETTINGS = (
    "powersgd:1",
    "powersgd:2",
    "powersgd:4",
    "powersgd:3,factors=int4",
    "acpsgd:1",
    "acpsgd:3",
    "gtopk:0.01",
    "gtopk:0.3",
    "oktopk:0.01",
    "oktopk:0.3",
    "sparcml:0.01",
    "sparcml:0.2",
    "doublesqueeze:topk:0.01",
    "doublesqueeze:int8",
    "doublesqueeze",
    "atomo:1",
    "atomo:3",
    "layertopk:0.01",
    "layertopk:0.3",
    "layertopk:0.05,by=norm",
    "sketch:0.01",
    "sketch:0.1,exact=false,rows=5",
    "sketch:0.05,rows=1",
    "sign",
    "sign:64",
    "zstd",
    "zstd:3,delta=true",
    "entropy",
    "thc",
    "thc:2,granularity=5,block=128",
    "dion:1",
    "dion:3,mu=0.5",
    "meansign",
    "meansign:64",
)
REDUCTIONS = listed("compression", AveragingMethod, SETTINGS)
# Settings at which nothing is lost.
WHOLE = (
    "powersgd:4097",
    "acpsgd:4097",
    "gtopk:1",
    "oktopk:1",
    "sparcml:1",
    "doublesqueeze:topk:1",
    "atomo:4097",
    "layertopk:1",
    "layertopk:1,by=norm",
    "sketch:1",
    "zstd",
    "zstd:delta=true",
    "entropy",
)
WORKERS = (1, 2, 3, 4, 5, 8)
FLAT = ((0,), (1,), (7,), (1000,), (4097,))
BUCKETS: tuple[tuple[tuple[int, ...], ...], ...] = (
    *((shape,) for shape in FLAT),
    ((17, 59),),
    ((40, 30), (40,), (6, 5, 3, 3), (0, 4), (40, 30), (), (30, 41)),
)
FEW_BUCKETS = (BUCKETS[0], BUCKETS[2], BUCKETS[-1])
DTYPES = (torch.float64, torch.bfloat16, torch.float16)


def reduction_of(text: str) -> AveragingMethod:
    (reduction,) = parse_compression(text)
    assert isinstance(reduction, AveragingMethod)
    return reduction


def layout_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> BucketLayout:
    tensors = {f"t{i}": torch.empty(shape, dtype=dtype) for i, shape in enumerate(shapes)}
    return plan_layout(tensors, [range(len(shapes))])[0]


def inputs(layout: BucketLayout, rank: int, turn: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * turn + rank)
    return torch.randn(layout.numel, generator=generator).to(layout.dtype)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one rank saw in one run."""

    given: Tensor
    mean: Tensor
    leftover: Tensor
    predicted: int
    declared: int
    counted: int


def reducer_on(transport: Transport, text: str, layout: BucketLayout) -> Averager:
    return build_averager(AllReduce(), reduction_of(text), transport, bucket=layout, number=1)


def average(transport: Transport, text: str, layout: BucketLayout, rounds: int = 2) -> list[Outcome]:
    counting = Counting(transport)
    reducer = reducer_on(counting, text, layout)
    shapes = [slot.shape for slot in layout.slots]
    declared = reduction_of(text).bytes_sent(shapes, layout.dtype.itemsize, transport.size, transport.rank)
    outcomes = []
    for turn in range(rounds):
        given = inputs(layout, transport.rank, turn)
        work, mean = given.clone(), torch.full_like(given, 7.0)
        counting.tally.clear()
        reducer.run(work, mean, seed=turn)
        reducer.keep()
        outcomes.append(
            Outcome(
                given=given,
                mean=mean,
                leftover=torch.zeros_like(work) if reducer.lossless else work,
                predicted=reducer.bytes_sent - getattr(reducer, "spared_bytes", 0),
                declared=declared,
                counted=counting.bytes_sent,
            )
        )
    return outcomes


def average_on_all(n: int, text: str, layout: BucketLayout) -> list[tuple[Outcome, ...]]:
    """Returns, per round, what every rank saw."""
    return list(zip(*run_threads(n, lambda t: average(t, text, layout), deadline_s=20), strict=True))


def check_laws(outcomes: Sequence[Outcome], *, votes: bool = False, bounded: bool = False) -> None:
    n, dtype = len(outcomes), outcomes[0].mean.dtype
    for outcome in outcomes:
        assert outcome.counted == outcome.predicted
        assert outcome.predicted <= outcome.declared if bounded else outcome.predicted == outcome.declared
        assert torch.equal(outcome.mean, outcomes[0].mean)
    if votes and n > 1:  # exempt from the law of the mean; what they promise is in their own tests
        return
    expected = torch.stack([o.given.double() - o.leftover.double() for o in outcomes]).mean(0)
    largest = max((float(o.given.abs().max()) for o in outcomes if o.given.numel()), default=0.0)
    tolerance = 8 * n * largest * torch.finfo(dtype).eps
    torch.testing.assert_close(outcomes[0].mean.double(), expected, rtol=0, atol=tolerance)


def test_every_reduction_is_here() -> None:
    assert {text.partition(":")[0] for text in REDUCTIONS} == {
        name for name, member in catalogue("compression").items() if issubclass(member, AveragingMethod)
    }


@pytest.mark.parametrize("n", WORKERS)
@pytest.mark.parametrize("text", REDUCTIONS)
def test_mean_traffic_and_agreement(text: str, n: int) -> None:
    for shapes in BUCKETS if n in (2, 3) else FEW_BUCKETS:
        for outcomes in average_on_all(n, text, layout_of(shapes)):
            check_laws(outcomes, votes=reduction_of(text).votes, bounded=reduction_of(text).bounded)


@pytest.mark.parametrize("text", REDUCTIONS)
def test_other_dtypes(text: str) -> None:
    for dtype in DTYPES:
        with told(dtype):
            for outcomes in average_on_all(3, text, layout_of(BUCKETS[-1], dtype)):
                check_laws(outcomes, votes=reduction_of(text).votes, bounded=reduction_of(text).bounded)


@pytest.mark.parametrize("text", REDUCTIONS)
def test_a_world_of_one_is_plain(text: str) -> None:
    [outcomes] = run_threads(1, lambda t: average(t, text, layout_of(BUCKETS[-1])))
    for outcome in outcomes:
        assert torch.equal(outcome.mean, outcome.given)
        assert not outcome.leftover.any()
        assert outcome.counted == 0


@pytest.mark.parametrize("n", WORKERS)
@pytest.mark.parametrize("text", WHOLE)
def test_losing_nothing_is_dense(text: str, n: int) -> None:
    for shapes in BUCKETS if n in (2, 3) else FEW_BUCKETS:
        runs = average_on_all(n, text, layout_of(shapes))[0]
        exact = torch.stack([outcome.given.double() for outcome in runs]).mean(0)
        torch.testing.assert_close(runs[0].mean.double(), exact, rtol=0, atol=1e-6 * max(n, 2))
        for outcome in runs:
            assert not outcome.leftover.any()


@pytest.mark.parametrize(("n", "poison"), [(2, math.nan), (3, math.inf), (3, -math.inf)])
@pytest.mark.parametrize("text", REDUCTIONS)
def test_a_poisoned_rank_is_seen_by_all_and_leaves_no_trace(text: str, n: int, poison: float) -> None:
    """Law 8: the mean is not finite anywhere, and a round that is not kept changes no later one."""
    layout = layout_of(BUCKETS[-1])

    def worker(transport: Transport) -> list[Tensor]:
        reducer = reducer_on(transport, text, layout)
        means = []
        for turn, poisoned in enumerate((False, True, False)):
            work, mean = inputs(layout, transport.rank, turn), torch.empty(layout.numel)
            if poisoned and transport.rank == 1:
                work[617] = poison
            before = {name: kept.clone() for name, kept in reducer.memory().items()}
            reducer.run(work, mean, seed=turn)
            if poisoned:
                assert not mean.isfinite().all()
                assert all(torch.equal(before[name], kept) for name, kept in reducer.memory().items())
            else:
                reducer.keep()
                means.append(mean)
        return means

    def untouched(transport: Transport) -> list[Tensor]:
        reducer = reducer_on(transport, text, layout)
        means = []
        for turn in (0, 2):
            mean = torch.empty(layout.numel)
            reducer.run(inputs(layout, transport.rank, turn), mean, seed=turn)
            reducer.keep()
            means.append(mean)
        return means

    runs, expected = run_threads(n, worker, deadline_s=20), run_threads(n, untouched, deadline_s=20)
    for mean, plain in zip(runs[0], expected[0], strict=True):
        assert torch.equal(mean, plain)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-42, 1e30])
@pytest.mark.parametrize("text", REDUCTIONS)
def test_all_equal_inputs(text: str, value: float) -> None:
    """Zeros, denormals and huge values: the mean stays finite, and with what is left over is the input."""
    layout = layout_of(BUCKETS[-1])

    def worker(transport: Transport) -> tuple[Tensor, Tensor]:
        reducer = reducer_on(transport, text, layout)
        for turn in range(3):
            work, mean = torch.full((layout.numel,), value), torch.empty(layout.numel)
            reducer.run(work, mean, seed=turn)
            reducer.keep()
        assert all(kept.isfinite().all() for kept in reducer.memory().values())
        return torch.zeros_like(work) if reducer.lossless else work, mean

    works, means = zip(*run_threads(3, worker, deadline_s=20), strict=True)
    assert means[0].isfinite().all()
    if reduction_of(text).votes:
        assert not text.startswith("sign") or means[0].eq(float(value > 0)).all()
        return
    rest = torch.full((layout.numel,), value) - torch.stack(works).mean(0)
    torch.testing.assert_close(means[0], rest, rtol=1e-4, atol=value * 1e-4)


@pytest.mark.parametrize("text", REDUCTIONS)
def test_memory_is_all_there_is_to_resume(text: str) -> None:
    """Law 4: a reducer that takes up another's memory goes on as it would have."""
    layout = layout_of(BUCKETS[-1])

    def worker(transport: Transport) -> None:
        first, second = (reducer_on(transport, text, layout) for _ in range(2))
        for turn in range(4):
            work, mean = inputs(layout, transport.rank, turn), torch.empty(layout.numel)
            again, same = work.clone(), torch.empty(layout.numel)
            if turn == 2:
                for name, kept in second.memory().items():
                    kept.copy_(first.memory()[name])
            first.run(work, mean, seed=turn)
            first.keep()
            if turn >= 2:
                second.run(again, same, seed=turn)
                second.keep()
                assert torch.equal(mean, same)
                assert torch.equal(work, again)

    run_threads(3, worker, deadline_s=20)


@pytest.mark.parametrize("text", REDUCTIONS)
def test_a_leftover_that_is_fed_back_does_not_grow_by_itself(text: str) -> None:
    if reduction_of(text).votes:
        pytest.skip("leaves nothing over")
    layout, rounds = layout_of(((1000,),)), 40

    def worker(transport: Transport) -> tuple[float, float]:
        reducer = reducer_on(transport, text, layout)
        leftover, given = torch.zeros(1000), torch.zeros(1000)
        for turn in range(rounds):
            x = inputs(layout, transport.rank, turn)
            given += x
            work, mean = leftover + x, torch.empty(1000)
            reducer.run(work, mean, seed=turn)
            reducer.keep()
            leftover = torch.zeros(1000) if reducer.lossless else work
        return float(leftover.norm()), float(given.norm())

    for left, given in run_threads(2, worker, deadline_s=20):
        assert left < 2 * given
