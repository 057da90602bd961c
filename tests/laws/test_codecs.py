"""What every codec promises; settings of special interest are lines in `SETTINGS`."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.laws.members import listed, told
from tightwire import kernels
from tightwire.catalogue import catalogue, parse_compression
from tightwire.compression import Codec
from tightwire.compression.trips import difficult, round_trip, unexplained
from tightwire.errors import TensorError
from tightwire.kernels import reference

SETTINGS = [
    "none",
    "bf16",
    "fp16",
    "int8",
    "int8:64",
    "int8:rounding=stochastic",
    "int4",
    "int4:rounding=stochastic",
    "int2",
    "int2:rounding=stochastic",
    "qsgd",
    "qsgd:7",
    "qsgd:1,block=64",
    "nuqsgd",
    "nuqsgd:0",
    "nuqsgd:30,block=64",
    "nuqsgd:126",
    "terngrad",
    "terngrad:clip=0",
    "fp8",
    "fp8:e5m2,block=64",
    "natural",
    "natural:block=8",
    "efsign",
    "efsign:64",
    "onebit",
    "onebit:64",
    "stc:0.01",
    "stc:0.3",
    "topk:0.01",
    "topk:0.3",
    "topk:1.0",
    "blocktopk:0.01",
    "blocktopk:0.3,block=64",
    "blocktopk:1,block=128",
    "blocktopk:0.015625,block=4096,values=int2",
    "blocktopk:0.3,block=64,values=int4",
    "blocktopk:0.1,values=int8",
    "threshold:2",
    "threshold:0.5,ratio=0.3",
    "threshold:1e-12,ratio=1",
    "randomk:0.01",
    "randomk:0.3",
    "randomk:1",
    "sampled:0.1",
    "sampled:0.5,top=0.5,values=full,block=64",
    "wangni:0.05",
    "wangni:0.5",
    "strom:0.5",
    "strom:0.1,ratio=0.5",
    "sbc:0.01",
    "sbc:0.3",
    "dct",
    "dct:9,chunk=128",
    "eden",
    "eden:4,block=512",
    "eden:3,block=256,scale=nearest",
]
CODECS = listed("compression", Codec, SETTINGS)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [0, 1, 7, 1000, 4097]
LARGE = 1_000_003

every_codec = pytest.mark.parametrize("text", CODECS)
# A large one costs much: each codec takes it in float32 and in one other dtype, by its place in the list.
LARGE_DTYPES = {text: (torch.float32, DTYPES[1 + place % 3]) for place, text in enumerate(CODECS)}


def codec_of(text: str) -> Codec:
    (codec,) = parse_compression(text)
    assert isinstance(codec, Codec)
    return codec


def normal(numel: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(dtype)


def message_for(codec: Codec, x: Tensor) -> Tensor:
    return torch.full((codec.wire_bytes(x.numel(), x.element_size()),), 0xA5, dtype=torch.uint8)


def assert_law(x: Tensor, decoded: Tensor, leftover: Tensor) -> None:
    """Asserts x == decoded + leftover within a rounding of the larger of the two."""
    assert unexplained(x, decoded, leftover) <= 1


def test_every_codec_is_here() -> None:
    named = {text.partition(":")[0] for text in CODECS}
    assert named == {name for name, member in catalogue("compression").items() if issubclass(member, Codec)}


@every_codec
def test_decoded_and_leftover_make_the_input(text: str) -> None:
    codec = codec_of(text)
    cases = [*itertools.product(DTYPES, SIZES), *((dtype, LARGE) for dtype in LARGE_DTYPES[text])]
    for dtype, numel in cases:
        with told(dtype, numel):
            x = normal(numel, dtype)
            message, decoded, leftover = round_trip(codec, x)
            assert message.numel() == codec.wire_bytes(numel, x.element_size())
            assert_law(x, decoded, leftover)


@every_codec
def test_difficult_inputs_stay_finite_and_lose_nothing(text: str) -> None:
    for dtype in DTYPES:
        for name, x in difficult(dtype).items():
            with told(dtype, name):
                _, decoded, leftover = round_trip(codec_of(text), x)
                assert_law(x, decoded, leftover)


@every_codec
def test_what_is_not_finite_stays_so(text: str) -> None:
    places = [(1, 0), (7, 6), (1000, 500), (4097, 4096), (4097, 3)]
    for dtype, poison, (numel, place) in itertools.product(DTYPES, (math.nan, math.inf, -math.inf), places):
        with told(dtype, poison, numel, place):
            x = normal(numel, dtype)
            x[place] = poison
            _, decoded, _ = round_trip(codec_of(text), x)
            assert not decoded.isfinite().all()


@every_codec
def test_reference_and_cpu_write_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [normal(numel, dtype) for dtype, numel in itertools.product(DTYPES, SIZES)]
    inputs += [x for dtype in DTYPES for x in difficult(dtype).values()]
    found = [round_trip(codec_of(text), x, seed=5) for x in inputs]
    monkeypatch.setattr(kernels, "of", lambda tensor: reference)
    for x, ours in zip(inputs, found, strict=True):
        with told(x.dtype, x.numel()):
            for mine, theirs in zip(ours, round_trip(codec_of(text), x, seed=5), strict=True):
                assert torch.equal(mine, theirs)


@every_codec
def test_same_seed_same_message(text: str) -> None:
    codec, x = codec_of(text), normal(4097)
    assert torch.equal(round_trip(codec, x, seed=3)[0], round_trip(codec, x, seed=3)[0])


@every_codec
def test_adding_is_decoding_and_then_adding(text: str) -> None:
    for dtype in DTYPES:
        with told(dtype):
            codec, x = codec_of(text), normal(1000, dtype)
            message, decoded, _ = round_trip(codec, x)
            out = normal(1000, dtype, seed=1)
            expected = out + decoded
            codec.decode(message, out, add=True)
            assert torch.equal(out, expected)


@every_codec
def test_message_may_lie_at_any_offset(text: str) -> None:
    codec, x = codec_of(text), normal(1000)
    message, decoded, _ = round_trip(codec, x)
    room = torch.empty(message.numel() + 8, dtype=torch.uint8)
    for offset in (1, 2, 3, 5):
        part, out = room[offset : offset + message.numel()], torch.zeros(1000)
        codec.encode(x.clone(), part)
        codec.decode(part, out)
        assert torch.equal(part, message)
        assert torch.equal(out, decoded)


@every_codec
def test_bucket_may_be_a_part_of_a_larger_one(text: str) -> None:
    codec, whole = codec_of(text), normal(1000)
    message, _, leftover = round_trip(codec, whole[3:904].clone())
    part = whole[3:904]
    before, after, again = whole[:3].clone(), whole[904:].clone(), message_for(codec, part)
    codec.encode(part, again)
    assert torch.equal(again, message)
    assert torch.equal(whole[:3], before)
    assert torch.equal(whole[904:], after)
    assert codec.lossless or torch.equal(part, leftover)


@every_codec
def test_message_of_another_size_is_refused(text: str) -> None:
    for change in (-1, 1):
        codec, out = codec_of(text), torch.ones(1000)
        message = torch.zeros(codec.wire_bytes(1000) + change, dtype=torch.uint8)
        with pytest.raises(TensorError, match="1000 elements"):
            codec.decode(message, out)
        with pytest.raises(TensorError, match="1000 elements"):
            codec.encode(out, message)
        assert torch.equal(out, torch.ones(1000))


@every_codec
def test_what_is_no_flat_float_is_refused(text: str) -> None:
    codec = codec_of(text)
    for dtype in (torch.int32, torch.complex64, torch.bool):
        x = torch.ones(8, dtype=dtype)
        with pytest.raises(TensorError, match="cannot take"):
            codec.encode(x, message_for(codec, x))
    for x in (torch.ones(4, 2), torch.ones(16)[::2]):
        with pytest.raises(TensorError, match="flat"):
            codec.encode(x, message_for(codec, x))


CONTRACTIVE = [text for text in CODECS if any(codec_of(text).contraction(n) is not None for n in SIZES)]
UNBIASED = [text for text in CODECS if codec_of(text).unbiased]
EXACT = [text for text in CODECS if codec_of(text).lossless or text == "topk:1.0"]


def test_the_laws_of_some_hold_for_as_many_as_are_known() -> None:
    bounded = set(CONTRACTIVE)
    assert len(bounded) >= 37
    assert len(UNBIASED) >= 16
    assert len(EXACT) == 2
    neither = {text.partition(":")[0] for text in set(CODECS) - bounded - set(UNBIASED)}
    assert neither == {"bf16", "fp16", "threshold", "strom", "terngrad"}


@pytest.mark.parametrize("text", CONTRACTIVE)
def test_contraction_holds(text: str) -> None:
    codec = codec_of(text)
    rounds = 48 if codec.unbiased or text.startswith(("randomk", "sampled")) else 2
    for numel in SIZES:
        delta = codec.contraction(numel)
        if delta is None:
            continue
        assert 0 < delta <= 1
        for x in (normal(numel), torch.full((numel,), 0.3), normal(numel) ** 5):
            errors = torch.stack(
                [round_trip(codec, x, seed=s)[2].double().square().sum() for s in range(rounds)]
            )
            bound = (1 - delta) * x.double().square().sum()
            assert errors.mean() <= bound * (1 + 1e-5) + 1e-12 + 5 * errors.std() / rounds**0.5, numel


@pytest.mark.parametrize("text", UNBIASED)
def test_unbiased_codecs_are_right_on_average(text: str) -> None:
    codec = codec_of(text)
    x, rounds = normal(257), 400
    decoded = torch.stack([round_trip(codec, x, seed=s)[1] for s in range(rounds)]).double()
    spread = decoded.std(0)
    # Five standard errors, and room for what is so seldom that no round may have shown it.
    allowed = 5 * spread / rounds**0.5 + 20 * spread.max() / rounds
    assert ((decoded.mean(0) - x).abs() <= allowed).all()


@pytest.mark.parametrize("text", EXACT)
def test_lossless_means_bit_for_bit(text: str) -> None:
    codec = codec_of(text)
    for dtype in DTYPES:
        for x in difficult(dtype).values():
            assert torch.equal(round_trip(codec, x)[1].view(torch.uint8), x.view(torch.uint8))


@every_codec
@settings(max_examples=30, deadline=None, database=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**64),
)
def test_any_values(text: str, values: list[float], dtype: torch.dtype, seed: int) -> None:
    limits = torch.finfo(dtype)
    x = torch.tensor(values, dtype=torch.float64).clamp(limits.min, limits.max).to(dtype)
    _, decoded, leftover = round_trip(codec_of(text), x, seed=seed)
    assert_law(x, decoded, leftover)


@every_codec
def test_text_is_the_same_after_a_round_trip(text: str) -> None:
    assert codec_of(str(codec_of(text))) == codec_of(text)
