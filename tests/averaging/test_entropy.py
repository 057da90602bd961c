"""Entropy-coded averages: what is spared, what the planner expects of it, and what is refused."""

import pytest
import torch
from torch import Tensor

from tightwire.averaging import Entropy
from tightwire.averaging._entropy import CodedPart
from tightwire.averaging._packed import PackedAverager
from tightwire.averaging.entropy import PRIOR_RATIOS
from tightwire.buckets import plan_layout
from tightwire.errors import TensorError
from tightwire.transport import Counting, Transport, run_threads

NUMEL = 50_000
CPU = torch.device("cpu")


def noise(seed: int = 0, numel: int = NUMEL, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(dtype)


def share_sent(inputs: list[Tensor]) -> float:
    """Returns the bytes of a round over those of the same elements without a header."""

    def worker(transport: Transport) -> int:
        counting, x = Counting(transport), inputs[transport.rank].clone()
        averager = Entropy().build(counting, plan_layout({"t": x}, [[0]])[0], tag=1)
        assert isinstance(averager, PackedAverager)
        averager.run(x, x, seed=0)
        torch.testing.assert_close(x, torch.stack(inputs).mean(0))
        assert counting.bytes_sent == averager.bytes_sent - averager.spared_bytes
        return counting.bytes_sent

    sent = run_threads(len(inputs), worker, deadline_s=20)
    return sum(sent) / (2 * (len(inputs) - 1) * inputs[0].nbytes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_prior_is_near_to_what_noise_takes(dtype: torch.dtype) -> None:
    x = [torch.randn(NUMEL, dtype=torch.float64).to(dtype) for _ in range(2)]
    assert share_sent(x) == pytest.approx(PRIOR_RATIOS[dtype.itemsize], abs=0.06)


def test_zeros_are_free_and_nothing_grows() -> None:
    assert share_sent([torch.where(noise(r) > 2, noise(r), 0.0) for r in range(2)]) < 0.1
    assert share_sent([torch.zeros(NUMEL)] * 3) < 0.001
    random = torch.randint(0, 255, (4 * NUMEL,), dtype=torch.uint8).view(torch.int32) & 0x3F7FFFFF
    assert share_sent([random.view(torch.float32)] * 2) < 1.001


def test_bits_that_were_sent_arrive() -> None:
    sent, received = (CodedPart(9000, torch.float32, CPU) for _ in range(2))
    x = noise(3, 9000)
    x[::7] = torch.nan
    sent.pack(x)
    received.header.copy_(sent.header)
    received.payload.copy_(sent.payload)
    out = torch.empty_like(x)
    received.unpack(out)
    assert torch.equal(out.view(torch.int32), x.view(torch.int32))


def test_what_cannot_be_a_part_is_refused() -> None:
    part = CodedPart(9000, torch.float32, CPU)
    part.pack(noise(0, 9000))
    part.payload[0] = 99
    with pytest.raises(TensorError, match=r"does not decode to 9000 elements of torch\.float32"):
        part.unpack(torch.empty(9000))
    for length in (0, part.most_bytes + 1):
        part.header[0] = length
        with pytest.raises(TensorError, match=rf"rank 5 announced {length} bytes .* nothing was applied"):
            part.check(5)
