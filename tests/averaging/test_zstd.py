"""Lossless messages: fewer bytes where bytes repeat, never more than raw, and what is refused."""

import math
import sys

import pytest
import torch
from torch import Tensor

from tightwire.averaging._packed import PackedAverager
from tightwire.averaging._zstandard import zstandard
from tightwire.averaging._zstd import SqueezedPart
from tightwire.averaging.zstd import Zstd
from tightwire.buckets import plan_layout
from tightwire.errors import PlanError, TensorError
from tightwire.kernels import cpu, reference
from tightwire.plan import Plan
from tightwire.transport import Counting, Transport, run_threads

NUMEL = 50_000


def noise(seed: int = 0, numel: int = NUMEL, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(dtype)


def share_sent(inputs: list[Tensor], *, delta: bool = False, rounds: int = 1) -> float:
    """Returns the bytes of the last round over those of raw planes."""

    def worker(transport: Transport) -> tuple[int, int]:
        layout = plan_layout({"t": inputs[0]}, [[0]])[0]
        counting = Counting(transport)
        reducer = Zstd(delta=delta).build(counting, layout, tag=1)
        assert isinstance(reducer, PackedAverager)
        for _ in range(rounds):
            counting.tally.clear()
            work = inputs[transport.rank].clone()
            reducer.run(work, work, seed=0)
            reducer.keep()
        assert counting.bytes_sent == reducer.bytes_sent - reducer.spared_bytes
        return counting.bytes_sent, reducer.bytes_sent

    sent, raw = zip(*run_threads(len(inputs), worker, deadline_s=20), strict=True)
    return sum(sent) / sum(raw)


def test_exponents_shrink_mantissas_travel_raw_and_zeros_are_free() -> None:
    assert 0.75 < share_sent([noise(0), noise(1)]) < 0.95
    assert share_sent([torch.where(noise(r) > 2, noise(r), 0.0) for r in range(2)]) < 0.3
    assert share_sent([torch.zeros(NUMEL)] * 3) < 0.01
    random = torch.randint(
        0, 255, (4 * NUMEL,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    finite = (random.view(torch.int32) & 0x7F7FFFFF).view(torch.float32)
    assert share_sent([finite, finite]) <= 1.0


def test_differences_to_the_last_round_shrink() -> None:
    inputs = [noise(0, dtype=torch.bfloat16), noise(1, dtype=torch.bfloat16)]
    assert share_sent(inputs, delta=True, rounds=2) < 0.02 < share_sent(inputs, rounds=2)


def test_a_round_that_does_not_count_changes_no_difference() -> None:
    def worker(transport: Transport) -> list[Tensor]:
        reducer = Zstd(delta=True).build(transport, plan_layout({"t": noise()}, [[0]])[0], tag=1)
        means = []
        for turn in range(4):
            work = noise(10 * turn + transport.rank)
            reducer.run(work, work, seed=0)
            means.append(work)
            if turn % 2:
                reducer.keep()
        return means

    ended = run_threads(3, worker, deadline_s=20)
    for turn in range(4):
        expected = sum(noise(10 * turn + rank) for rank in range(3)) / 3
        torch.testing.assert_close(ended[0][turn], expected)
        assert all(torch.equal(means[turn], ended[0][turn]) for means in ended)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("numel", [0, 1, 7, 9000])
def test_a_parcel_holds_every_bit(dtype: torch.dtype, numel: int) -> None:
    x = noise(3, numel, dtype)
    x[numel // 2 :: 3] = math.nan
    sent, received = (SqueezedPart(numel, dtype, zstandard(1), delta=False) for _ in range(2))
    sent.pack(x)
    received.header.copy_(sent.header)
    received.payload.copy_(sent.payload)
    out = torch.empty_like(x)
    received.unpack(out)
    assert torch.equal(out.view(torch.uint8), x.view(torch.uint8))


def test_what_cannot_be_a_parcel_is_refused() -> None:
    parcel = SqueezedPart(9000, torch.float32, zstandard(1), delta=False)
    parcel.pack(torch.zeros(9000))
    assert parcel.payload.numel() < 400
    out = torch.ones(9000)
    parcel.payload.fill_(7)
    with pytest.raises(TensorError, match="no zstd frame"):
        parcel.unpack(out)
    assert torch.equal(out, torch.ones(9000))
    for length in (-1, 9001):
        parcel.header[2] = length
        with pytest.raises(TensorError, match=r"rank 5 announced planes .* nothing was applied"):
            parcel.check(5)
    other = SqueezedPart(8000, torch.float32, zstandard(1), delta=False)
    other.pack(torch.zeros(8000))
    parcel.header.copy_(other.header)
    parcel.payload.copy_(other.payload)
    with pytest.raises(TensorError, match="9000 bytes came as a zstd frame of 8000"):
        parcel.unpack(out)


def test_reference_and_cpu_cut_the_same_planes() -> None:
    for dtype in (torch.int16, torch.int32, torch.int64):
        x = torch.arange(-500, 500).to(dtype) * 77
        mine, theirs = (torch.empty(x.nbytes, dtype=torch.uint8) for _ in range(2))
        cpu.split_planes(x, mine)
        reference.split_planes(x, theirs)
        assert torch.equal(mine, theirs)
        for kernels in (cpu, reference):
            back = torch.empty_like(x)
            kernels.join_planes(mine, back)
            assert torch.equal(back, x)


def test_without_zstd_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(PlanError, match=r"pip install 'tightwire\[zstd\]'"):
        zstandard(1)


@pytest.mark.parametrize(
    ("text", "said"), [("zstd:0", "1 … 19"), ("zstd:20", "1 … 19"), ("zstd+ef", "lossless")]
)
def test_settings_that_cannot_work(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(f"bsp/allreduce/{text}")
