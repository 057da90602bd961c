"""Laws 1, 2, 5, 8 and 9 for every program with every codec that it can carry."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.laws.members import told
from tightwire.architecture import PROGRAMS, Runner, build
from tightwire.catalogue import parse_compression
from tightwire.compression import Codec
from tightwire.transport import Counting, Transport, run_threads

CODECS = (
    "none",
    "bf16",
    "fp16",
    "int8",
    "int8:rounding=stochastic",
    "topk:0.01",
    "topk:1",
    "randomk:0.1",
    "wangni:0.1",
)
WORKERS = (2, 3, 4, 5, 8)
SIZES = (0, 1, 7, 4097)
LARGE = 300_007
PIECE_BYTES = 4096  # small, so that small buffers are cut too


def codec_of(text: str) -> Codec:
    codec = parse_compression(text)[0]
    assert isinstance(codec, Codec)
    return codec


def carries(program: str, codec: Codec) -> bool:
    if program == "native":
        return codec.sums_as is not None
    return program == "allgather" or codec.combine != "none"


PAIRS = [(name, text) for name in PROGRAMS for text in CODECS if carries(name, codec_of(text))]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one rank saw in one run."""

    given: Tensor
    mean: Tensor
    leftover: Tensor
    predicted: int
    counted: int


def inputs(numel: int, rank: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(100 + rank)).to(dtype)


def average(
    transport: Transport,
    program: str,
    codec: Codec,
    given: Tensor,
    *,
    seed: int = 1,
    piece_bytes: int = PIECE_BYTES,
) -> Outcome:
    counting = Counting(transport)
    runner = Runner(
        build(program, transport.size),
        counting,
        numel=given.numel(),
        dtype=given.dtype,
        codec=codec,
        piece_bytes=piece_bytes,
    )
    for _ in range(2):  # the second run finds the buffers of the first
        work, mean = given.clone(), torch.full_like(given, 7.0)
        counting.tally.clear()
        runner.run(work, mean, seed=seed)
    leftover = torch.zeros_like(work) if codec.lossless else work
    return Outcome(
        given=given, mean=mean, leftover=leftover, predicted=runner.bytes_sent, counted=counting.bytes_sent
    )


def check_laws(outcomes: list[Outcome], program: str, codec: Codec) -> None:
    n, dtype = len(outcomes), outcomes[0].mean.dtype
    sums_in = getattr(torch, codec.sums_as) if program == "native" and codec.sums_as else dtype
    for outcome in outcomes:
        assert outcome.counted == outcome.predicted
        assert torch.equal(outcome.mean, outcomes[0].mean)
    expected = sum(o.given.double() - o.leftover.double() for o in outcomes) / n
    assert isinstance(expected, Tensor)
    largest = max((float(o.given.abs().max()) for o in outcomes if o.given.numel()), default=0.0)
    tolerance = 2 * n * largest * max(torch.finfo(dtype).eps, torch.finfo(sums_in).eps)
    torch.testing.assert_close(outcomes[0].mean.double(), expected, rtol=0, atol=tolerance)


def run(
    n: int, program: str, codec: Codec, numel: int, dtype: torch.dtype, piece_bytes: int = PIECE_BYTES
) -> None:
    outcomes = run_threads(
        n,
        lambda t: average(t, program, codec, inputs(numel, t.rank, dtype), piece_bytes=piece_bytes),
        deadline_s=20,
    )
    check_laws(outcomes, program, codec)


@pytest.mark.parametrize(("program", "text"), PAIRS)
def test_mean_traffic_and_agreement(program: str, text: str) -> None:
    for n, numel in itertools.product(WORKERS, SIZES):
        with told(n, numel):
            run(n, program, codec_of(text), numel, torch.float32)


@pytest.mark.parametrize(("program", "text"), PAIRS)
def test_other_dtypes(program: str, text: str) -> None:
    for place, dtype in enumerate(
        (torch.float64, torch.bfloat16, torch.float16), PAIRS.index((program, text))
    ):
        with told(dtype):
            run((3, 4)[place % 2], program, codec_of(text), 4097, dtype)


@pytest.mark.parametrize(("program", "text"), PAIRS)
def test_a_large_odd_size(program: str, text: str) -> None:
    run(3, program, codec_of(text), LARGE, torch.float32, piece_bytes=512 * 1024)


@pytest.mark.parametrize(("n", "poison"), [(3, float("nan")), (4, float("inf"))])
@pytest.mark.parametrize(("program", "text"), PAIRS)
def test_a_poisoned_rank_is_seen_by_all(program: str, text: str, n: int, poison: float) -> None:
    def worker(transport: Transport) -> Tensor:
        given = inputs(1000, transport.rank, torch.float32)
        if transport.rank == 1:
            given[617] = poison
        return average(transport, program, codec_of(text), given).mean

    means = run_threads(n, worker, deadline_s=20)
    for mean in means:
        assert not mean.isfinite().all()
        torch.testing.assert_close(mean, means[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("program", "text"), PAIRS)
def test_a_world_of_one_is_plain(program: str, text: str) -> None:
    [outcome] = run_threads(1, lambda t: average(t, program, codec_of(text), inputs(1000, 0, torch.float32)))
    assert torch.equal(outcome.mean, outcome.given)
    assert not outcome.leftover.any()
    assert outcome.counted == outcome.predicted == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_lossless_codecs_average_in_place(program: str) -> None:
    def worker(transport: Transport) -> tuple[Tensor, Tensor]:
        given = inputs(4097, transport.rank, torch.float32)
        apart = average(transport, program, codec_of("none"), given).mean
        runner = Runner(
            build(program, transport.size), transport, numel=4097, dtype=given.dtype, codec=codec_of("none")
        )
        runner.run(given, given)
        return apart, given

    for apart, in_place in run_threads(4, worker):
        assert torch.equal(apart, in_place)


def test_keeping_everything_is_dense() -> None:
    """Top-k of ratio 1 by all-gather adds in rank order, as the plain sum does."""
    given = [inputs(1000, rank, torch.float32) for rank in range(3)]
    means = run_threads(3, lambda t: average(t, "allgather", codec_of("topk:1"), given[t.rank]).mean)
    assert torch.equal(means[0], (given[0] + given[1] + given[2]) / 3)
