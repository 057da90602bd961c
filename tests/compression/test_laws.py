"""The laws hold for lawful codecs, and each way to get a codec wrong is found by the law that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tightwire as tw
from tightwire import catalogue
from tightwire.architecture import AllReduce
from tightwire.averaging import build_averager
from tightwire.buckets import plan_layout
from tightwire.compression import Codec, Combine, compile_kernels
from tightwire.compression.checks import check
from tightwire.compression.laws import LAWS, laws_of
from tightwire.compression.trips import normal, unexplained
from tightwire.errors import CodecError, PlanError, TensorError
from tightwire.transport import Single


@dataclass(frozen=True)
class Largest(Codec):
    """Sends the larger half of a bucket, as float64 and indices of four bytes: what the wrong ones below change."""

    name: ClassVar[str] = "largest"
    title: ClassVar[str] = "the larger half"
    paper: ClassVar[str] = "nobody's"
    combine: ClassVar[Combine] = "none"

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        return 12 * ((numel + 1) // 2)

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        at = x.abs().topk((x.numel() + 1) // 2).indices
        values, places = x[at].double(), at.to(torch.int32)
        message.copy_(torch.cat([values.view(torch.uint8), places.view(torch.uint8)]))
        x[at] = 0

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        k = message.numel() // 12
        values = message[: 8 * k].clone().view(torch.float64).to(out.dtype)
        places = message[8 * k :].clone().view(torch.int32).long()
        if not add:
            out.zero_()
        out.index_add_(0, places, values)

    def normal_error(self, numel: int) -> float:
        return 0.08


def wrong(**changes: Any) -> Codec:
    """Returns a codec that differs from a lawful one in so much."""
    codec: Codec = dataclass(frozen=True)(type("Wrong", (Largest,), {"name": "wrong", **changes}))()
    return codec


def encoding(change: Callable[[Codec, Tensor, Tensor, int], None]) -> Codec:
    return wrong(encode=lambda self, x, message, *, seed=0: change(self, x, message, seed))


def decoding(change: Callable[[Codec, Tensor, Tensor, bool], None]) -> Codec:
    return wrong(decode=lambda self, message, out, *, add=False: change(self, message, out, add))


def loses_what_it_leaves(self: Codec, x: Tensor, message: Tensor, seed: int) -> None:
    Largest().encode(x, message)
    x.zero_()


def forgets_feedback(self: Codec, x: Tensor, message: Tensor, seed: int) -> None:
    first = x[: x.numel() - x.numel() // 2].clone()
    message.zero_()
    message[: 8 * first.numel()] = first.double().view(torch.uint8)
    message[8 * first.numel() :] = torch.arange(first.numel(), dtype=torch.int32).view(torch.uint8)
    x[: first.numel()] = 0


def draws_by_chance(self: Codec, x: Tensor, message: Tensor, seed: int) -> None:
    Largest().encode(x, message)
    message.view(-1, 12)[:, :] = message.view(-1, 12)[torch.randperm(message.numel() // 12)]


def hides_infinities(self: Codec, x: Tensor, message: Tensor, seed: int) -> None:
    x.nan_to_num_()
    Largest().encode(x, message)


_kept: list[Tensor] = []


def keeps_places(self: Codec, x: Tensor, message: Tensor, seed: int) -> None:
    _kept[:] = [x.abs().topk((x.numel() + 1) // 2).indices]
    Largest().encode(x, message)
    message[8 * _kept[0].numel() :] = 0


def asks_for_places(self: Codec, message: Tensor, out: Tensor, add: bool) -> None:
    k = message.numel() // 12
    if not add:
        out.zero_()
    out.index_add_(0, _kept[0], message[: 8 * k].clone().view(torch.float64).to(out.dtype))


def reads_without_a_copy(self: Codec, message: Tensor, out: Tensor, add: bool) -> None:
    message[: 8 * (message.numel() // 12)].view(torch.float64)
    Largest().decode(message, out, add=add)


WRONG = [
    ("frozen value", wrong(paper=None)),
    ("wire_bytes says", wrong(wire_bytes=lambda self, numel, itemsize=4: 2 * numel)),
    ("wire_bytes says", wrong(wire_bytes=lambda self, numel, itemsize=4: numel / 2)),
    ("wire_bytes says", encoding(draws_by_chance)),
    ("decodes to", encoding(loses_what_it_leaves)),
    ("decodes to", decoding(lambda s, m, out, add: out.copy_(Largest().decode(m, out) or out.roll(1)))),
    (
        "message alone",
        wrong(
            encode=lambda self, x, message, *, seed=0: keeps_places(self, x, message, seed),
            decode=lambda self, message, out, *, add=False: asks_for_places(self, message, out, add),
        ),
    ),
    ("add=True", decoding(lambda self, message, out, add: Largest().decode(message, out))),
    ("any byte", decoding(reads_without_a_copy)),
    ("not finite", encoding(hides_infinities)),
    ("declare", wrong(normal_error=lambda self, numel: 0.01)),
    ("declare", wrong(contraction=lambda self, numel: 2.0)),
    (
        "every element is sent",
        wrong(
            encode=lambda self, x, message, *, seed=0: forgets_feedback(self, x, message, seed),
            normal_error=lambda self, numel: 0.5,
        ),
    ),
    ("combine", wrong(combine="exact")),
]


@pytest.mark.parametrize(
    "codec",
    [
        Largest(),
        *map(catalogue.parse_compression, ("none", "fp16", "int4", "topk:0.3", "randomk:0.3", "strom:0.5")),
    ],
    ids=str,
)
def test_lawful_codecs_pass(codec: Codec | tuple[Codec]) -> None:
    found = tw.check_codec(codec[0] if isinstance(codec, tuple) else codec, dtype=torch.float32)
    assert len(found) == len(LAWS)
    assert not [one for one in found if one.broken]
    assert max(one.num_bytes for one in found) > 0


@pytest.mark.parametrize(("law", "codec"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_each_mistake_breaks_its_law(law: str, codec: Codec) -> None:
    broken = [one for one in laws_of(codec, dtypes=("float32",), sizes=(7, 257), seeds=(0,)) if one.broken]
    assert law in broken[0].law, broken
    with pytest.raises(CodecError, match="Seen: "):
        tw.check_codec(codec, dtype=torch.float32)


@dataclass(frozen=True)
class Seven(Codec):
    """Sends seven bits of each element, by a scale in float32: the largest of float64 are beyond it."""

    name: ClassVar[str] = "seven"
    title: ClassVar[str] = "7 bits with one scale"
    paper: ClassVar[str] = "nobody's"
    combine: ClassVar[Combine] = "none"

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        return numel + 4

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        check(self, x, message)
        scale = x.abs().amax().float().clamp(min=1e-30) / 128 if x.numel() else torch.ones(())
        levels = (x / scale).round().clamp(-127, 127)
        message[:4] = scale.reshape(1).view(torch.uint8)
        message[4:] = levels.to(torch.int8).view(torch.uint8)
        x.sub_((levels * scale).to(x.dtype))

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        check(self, out, message)
        scale = message[:4].clone().view(torch.float32)
        values = (message[4:].view(torch.int8).float() * scale).to(out.dtype)
        out.add_(values) if add else out.copy_(values)

    def normal_error(self, numel: int) -> float:
        return 0.001


def test_a_codec_that_computes_in_float32_says_that_it_takes_no_float64() -> None:
    with pytest.raises(CodecError, match=r"holds for all dtypes but float64.*dtypes = "):
        tw.check_codec(Seven())

    class Narrow(Seven):
        dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")

    assert tw.check_codec(Narrow())
    with pytest.raises(TensorError, match=r"cannot take torch\.float64: it takes float32, bfloat16, float16"):
        Narrow().encode(torch.zeros(3, dtype=torch.float64), torch.zeros(7, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_left_of_the_largest_elements_is_explained(dtype: torch.dtype) -> None:
    """Though what was decoded and what is left, which is rounded, may add up to more than the largest element."""
    largest = torch.finfo(dtype).max
    decoded = normal(1000, dtype).abs().clamp(max=4) * (largest / 4)
    for x in (torch.full_like(decoded, largest), torch.full_like(decoded, -largest)):
        assert unexplained(x, decoded * x.sign(), x - decoded * x.sign()) <= 1
        assert unexplained(x, decoded * x.sign(), (x - decoded * x.sign()) * 0.9) > 1


def test_a_text_is_read() -> None:
    assert tw.check_codec("int8")
    with pytest.raises(PlanError, match="is no codec"):
        tw.check_codec("topk:0.1+ef")


def test_a_codec_from_outside_is_checked_before_its_first_message(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = encoding(loses_what_it_leaves)
    compile_kernels(codec)  # nobody registered it
    monkeypatch.setattr(catalogue, "_registered", [type(codec), Largest])
    with pytest.raises(CodecError, match="wrong breaks a law of codecs: input − leftover"):
        compile_kernels(codec)
    (layout,) = plan_layout({"w": torch.zeros(5)}, [[0]])
    with pytest.raises(CodecError, match="element"):
        build_averager(AllReduce(), codec, Single(), bucket=layout, number=0)
    build_averager(AllReduce(), Largest(), Single(), bucket=layout, number=0)
