"""Cocktail's three compressors in a row, against each written out."""

from __future__ import annotations

import torch

from tests.laws.test_codecs import codec_of, normal, round_trip
from tightwire import kernels
from tightwire.catalogue import parse_compression
from tightwire.compression import BlockTopK


def test_it_sends_the_largest_of_the_drawn_ones() -> None:
    x = normal(10_000)
    places = torch.empty(1000, dtype=torch.int64)
    kernels.of(x).shared_indices(10_000, 7, places)
    _, decoded, leftover = round_trip(codec_of("sampled:0.1,top=0.25,values=full,block=64"), x, seed=7)
    sent = decoded.nonzero().flatten()
    assert set(sent.tolist()) <= set(places.tolist())
    drawn = x[places]
    for begin in range(0, 960, 64):
        block = drawn[begin : begin + 64].abs()
        chosen = decoded[places[begin : begin + 64]] != 0
        assert int(chosen.sum()) == 16
        assert block[chosen].min() >= block[~chosen].max()
    assert torch.equal(decoded + leftover, x)


def test_a_cocktail_is_a_hundredth() -> None:
    (codec, _) = parse_compression("cocktail")
    numel = 1 << 20
    assert 115 < 4 * numel / codec.wire_bytes(numel) < 135  # type: ignore[attr-defined]
    inner = BlockTopK(0.2, block=256, values="int4")
    assert codec.wire_bytes(numel) == 4 + inner.wire_bytes(104_858)  # type: ignore[attr-defined]
