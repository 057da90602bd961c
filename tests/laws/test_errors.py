"""Law 14: what a codec loses over a program is declared, and no more than that is lost, in any dtype, for long."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from tests.laws.test_codecs import CODECS, codec_of, message_for
from tightwire.answers import Sender
from tightwire.architecture import PROGRAMS, AllReduce, build
from tightwire.architecture.allreduce.accuracy import error_of_mean
from tightwire.architecture.allreduce.part import trace_of
from tightwire.architecture.round import Round
from tightwire.averaging import BucketAverager, build_averager
from tightwire.averaging.averager import StatelessAverager
from tightwire.buckets import Bucket, plan_layout
from tightwire.catalogue import parse_compression
from tightwire.compression import Codec
from tightwire.errors import ProgramError
from tightwire.transport import Transport, run_threads

LOSSY = [text for text in CODECS if not codec_of(text).lossless]
# Their errors depend on the size of elements, and what they declare is the most that it can be.
BY_SIZE = ("threshold", "strom")
# Noise grows with it from hop to hop, so that what is declared is a bound.
ONCE_OR_TWICE = ("auto", "direct", "allgather")
NUMEL = 4096


def carried(codec: Codec, x: Tensor, seed: int) -> Tensor:
    work, out, message = x.clone(), torch.empty_like(x), message_for(codec, x)
    codec.encode(work, message, seed=seed)
    codec.decode(message, out)
    return out


@functools.cache
def gradients(n: int) -> Tensor:
    return torch.randn(n, NUMEL, generator=torch.Generator().manual_seed(n))


def measured(codec: Codec, name: str, n: int) -> float:
    """Returns the relative squared error of the mean, by the arithmetic of one chunk of a program."""
    program, given = build(name, n), gradients(n)
    trace, seeds = trace_of(program), iter(range(1, 10_000))
    if program.gathers:
        found = torch.stack([carried(codec, x, next(seeds)) for x in given]).sum(0)
    else:
        found = trace.values.evaluate(
            trace.ends[0], lambda rank, _: given[rank], torch.add, lambda x: carried(codec, x, next(seeds))
        )
    if codec.combine == "exact":  # one seed for all
        found = torch.stack([carried(codec, x, 1) for x in given]).sum(0)
    exact = given.sum(0)
    return float((found - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize("text", LOSSY)
def test_one_encoding_loses_what_is_declared(text: str) -> None:
    codec, x = codec_of(text), torch.randn(1 << 16, generator=torch.Generator().manual_seed(1))
    lost = float((carried(codec, x, 3) - x).square().sum() / x.square().sum())
    declared = codec.normal_error(x.numel())
    assert lost <= 1.15 * declared + 1e-12
    if text.partition(":")[0] not in BY_SIZE:
        assert lost >= 0.85 * declared


@pytest.mark.parametrize(
    ("text", "n"), [(text, n) for place, text in enumerate(LOSSY) for n in (4, (8, 16)[place % 2], 64)]
)
def test_means_of_independent_gradients_are_as_near_as_declared(text: str, n: int) -> None:
    """One of `sbc` is further at times: all elements of a worker err to the side that it did not send."""
    codec, checked = codec_of(text), 0
    for name, recipe in PROGRAMS.items():
        if (
            (codec.combine == "none" and name != "allgather")
            or name == "native"
            or (n > 16 and recipe.default_shape)
        ):
            continue
        declared = error_of_mean(build(name, n), codec, NUMEL)
        found = measured(codec, name, n)
        assert found <= (2 if text.startswith("sbc") else 1.3) * declared, name
        if name in ONCE_OR_TWICE and text.partition(":")[0] not in BY_SIZE:
            assert found >= 0.55 * declared, name
        checked += 1
    assert checked == 1 if codec.combine == "none" else checked >= 6


@pytest.mark.parametrize("text", ["int2", "qsgd:7", "efsign", "topk:0.1"])
@pytest.mark.parametrize("name", ["auto", "ring", "direct", "allgather", "halving-doubling"])
def test_a_run_is_as_near_as_it_declares(text: str, name: str) -> None:
    codec = codec_of(text)
    if codec.combine == "none" and name not in ("auto", "allgather"):
        with pytest.raises(ProgramError, match="no elementwise sum"):
            run_threads(2, lambda t: run_once(t, codec, name))
        return
    [(error, declared), *_] = run_threads(5, lambda t: run_once(t, codec, name), deadline_s=20)
    assert error <= 1.2 * declared
    assert name not in ONCE_OR_TWICE or error >= 0.5 * declared


def run_once(transport: Transport, codec: Codec, name: str) -> tuple[float, float]:
    n = transport.size
    given = torch.randn(n, 5 * NUMEL, generator=torch.Generator().manual_seed(0))
    (layout,) = plan_layout({"x": given[0]}, [[0]])
    averager = build_averager(AllReduce(name), codec, transport, bucket=layout, number=0)
    mean, exact = torch.empty(layout.numel), given.mean(0)
    averager.run(given[transport.rank].clone(), mean, seed=1)
    assert averager.error is not None
    return float((mean - exact).square().sum() / exact.square().sum()), averager.error


class Alone(StatelessAverager):
    """Sends to nobody but itself: what a worker of one would lose if it compressed."""

    def __init__(self, sender: Sender) -> None:
        assert isinstance(sender, Codec)
        self._codec, self.delivery, self.bytes_sent = sender, sender.delivery, 0

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        message = message_for(self._codec, bucket)
        self._codec.encode(bucket, message, seed=seed)
        self._codec.decode(message, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("text", ["topk:0.1+ef", "int4+ef", "topk:0.1+adacomp:20"])
def test_feedback_keeps_its_promise_for_long(text: str, dtype: torch.dtype) -> None:
    """What has arrived and what is left over is what was put in, also of elements that are small beside others."""
    # The coarsest dtype loses most, and top-k sends the smallest elements seldom.
    numel, rounds = 64, 10_000 if (text, dtype) == ("topk:0.1+ef", torch.bfloat16) else 2000
    given = torch.logspace(0, -3, numel, dtype=torch.float64).to(dtype)
    (layout,) = plan_layout({"w": given}, [[0]])
    averager = BucketAverager(Bucket(layout), parse_compression(text), Alone, workers=1)
    arrived = torch.zeros(numel, dtype=torch.float64)
    for number in range(1, rounds + 1):
        averager.bucket.flat.copy_(given)
        averager.run(Round(number=number, seed=number))
        averager.keep()
        arrived += averager.bucket.flat
    kept = averager.memory()["w"]
    left = kept["adacomp" if "adacomp" in text else "ef"].double()
    torch.testing.assert_close(arrived + left, rounds * given.double(), rtol=3e-3, atol=0)
