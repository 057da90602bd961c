"""Entropy-coded floats: every bit comes back, all implementations write the same, nothing grows beyond the bound."""

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.laws.test_codecs import DTYPES, difficult, normal
from tightwire.kernels import _huffman, cpu, reference
from tightwire.kernels.formats import ENTROPY_BLOCK, entropy_bound_bytes
from tightwire.kernels.reference._rows import integer_bits

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def encoded(kernels: ModuleType, x: Tensor) -> Tensor:
    # At an odd address, as messages behind one another are.
    room = torch.full((entropy_bound_bytes(x.numel(), x.element_size()) + 1,), 0xA5, dtype=torch.uint8)[1:]
    return room[: kernels.encode_entropy(x, room)]


def decoded(kernels: ModuleType, message: Tensor, x: Tensor) -> Tensor:
    out = torch.full_like(x, 7)
    assert kernels.decode_entropy(message, out)
    return out


def assert_exact(x: Tensor) -> Tensor:
    message = encoded(cpu, x)
    assert torch.equal(message, encoded(reference, x))
    for kernels in (cpu, reference):
        assert torch.equal(integer_bits(decoded(kernels, message, x)), integer_bits(x))
    return message


def all_bits(dtype: torch.dtype, numel: int = 1 << 16) -> Tensor:
    """Returns floats of random bits: every NaN, infinity and denormal is as likely as any other."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    limits = torch.iinfo(kind)
    return torch.randint(limits.min, limits.max, (numel,), dtype=kind).view(dtype)


@every_dtype
@pytest.mark.parametrize("numel", [0, 1, 2, 3, 7, 79, 80, 1000, 4097])
def test_every_size_is_exact(dtype: torch.dtype, numel: int) -> None:
    x = normal(numel, dtype)
    assert_exact(x)
    assert_exact(x * (torch.arange(numel) % 5 == 0))
    assert_exact(x.clamp(0.9, 1.1))


@every_dtype
def test_every_bit_pattern_is_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for x in (all_bits(dtype, 3000), *difficult(dtype).values(), torch.full((500,), torch.nan, dtype=dtype)):
        assert_exact(x)
    if dtype.itemsize == 2:
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
        assert torch.equal(integer_bits(decoded(cpu, encoded(cpu, every), every)), integer_bits(every))


@every_dtype
def test_several_blocks_and_all_their_kinds(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = normal(ENTROPY_BLOCK, dtype)
    sparse = dense * (torch.arange(ENTROPY_BLOCK) % 7 == 0)
    x = torch.cat(
        [dense, torch.zeros_like(dense), sparse, all_bits(dtype), torch.ones_like(dense), dense[:1001]]
    )
    message = encoded(cpu, x)
    assert torch.equal(integer_bits(decoded(cpu, message, x)), integer_bits(x))
    assert message.numel() < 0.7 * x.nbytes


@every_dtype
def test_nothing_grows_beyond_the_bound(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for numel in (1, 100, ENTROPY_BLOCK + 1):
        x = all_bits(dtype, numel)
        assert encoded(cpu, x).numel() <= entropy_bound_bytes(numel, dtype.itemsize)
    assert entropy_bound_bytes(0, 4) == encoded(cpu, torch.empty(0)).numel() == 8


def test_normal_floats_shrink_as_their_exponents_allow() -> None:
    """The entropy of a normal variable's exponent is 2.55 bits; a prefix code is at most a few hundredths above."""
    x = normal(300_000)
    for dtype, ratio in (
        (torch.float32, 0.832),
        (torch.bfloat16, 0.664),
        (torch.float16, 0.85),
        (torch.float64, 0.52),
    ):
        assert encoded(cpu, x.to(dtype)).numel() <= ratio * x.numel() * dtype.itemsize
    assert encoded(cpu, x.bfloat16().float()).numel() <= 0.332 * x.nbytes  # what autocast leaves in float32


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 1 << 40) | st.integers(0, 3), min_size=256, max_size=256))
def test_words_are_a_code_whatever_is_counted(drawn: list[int]) -> None:
    counts = np.array(drawn, np.int64)
    lengths, words = np.zeros(256, np.int64), np.zeros(256, np.int64)
    _huffman.word_lengths(counts, lengths)
    present = counts > 0
    assert ((lengths > 0) == present).all() or present.sum() < 2
    if present.sum() >= 2:
        assert lengths.max() <= _huffman.LONGEST
        assert (2.0 ** -lengths[present]).sum() == 1
        assert _huffman.words_of(lengths, words)
        order = np.argsort(counts[present], kind="stable")
        assert (np.diff(lengths[present][order]) <= 0).all()  # the rarer, the longer


def test_words_of_counts_that_double_are_cut() -> None:
    counts = np.array([1 << min(i, 50) for i in range(60)] + [0] * 196, np.int64)
    lengths = np.zeros(256, np.int64)
    _huffman.word_lengths(counts, lengths)
    assert (2.0 ** -lengths[:60].astype(float)).sum() == 1
    assert lengths.max() == _huffman.LONGEST


@pytest.mark.parametrize("kernels", [cpu, reference])
def test_messages_that_cannot_be_are_refused_or_decode_to_something(kernels: ModuleType) -> None:
    """Whatever bytes arrive, no memory but `out` is written, and a wrong length is told."""
    x = normal(500) * (torch.arange(500) % 3 > 0)
    message = encoded(cpu, x)
    for length in (0, 7, 8, 15, 16, 60, message.numel() - 1):
        assert not kernels.decode_entropy(message[:length], torch.empty(500))
    assert not kernels.decode_entropy(message, torch.empty(499))
    assert not kernels.decode_entropy(torch.cat([message, message[:3]]), torch.empty(500))
    generator = np.random.default_rng(0)
    for _ in range(300):
        wrong = message.clone()
        wrong[int(generator.integers(0, 40 if kernels is reference else wrong.numel()))] ^= int(
            generator.integers(1, 256)
        )
        kernels.decode_entropy(wrong, torch.empty(500))
