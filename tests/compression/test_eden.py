"""EDEN and DRIVE: what the papers promise of the error, whatever the input, and how the message is packed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.laws.test_codecs import codec_of, normal, round_trip
from tightwire import kernels
from tightwire.compression._rotated import row_sums

# D/(1 − D) of EDEN's section 3, D being the distortion of 2, 4, 8 and 16 levels (Max 1960, table I: 0.3634 … 0.009497).
PROMISED = {1: 0.571, 2: 0.133, 3: 0.0358, 4: 0.0096}


def inputs() -> dict[str, Tensor]:
    few = torch.zeros(4096)
    few[5], few[700] = 1.0, 0.4
    return {
        "normal": normal(4096),
        "heavy": normal(4096) ** 5,
        "few": few,
        "constant": torch.full((4096,), 0.3),
    }


@pytest.mark.parametrize("bits", PROMISED)
def test_the_error_is_the_papers_whatever_the_input(bits: int) -> None:
    codec = codec_of(f"eden:{bits}")
    for name, x in inputs().items():
        decoded = torch.stack([round_trip(codec, x, seed=seed)[1] for seed in range(40)])
        error = float((decoded - x).square().sum(1).mean() / x.square().sum())
        assert error == pytest.approx(PROMISED[bits], rel=0.06), name
        # Unbiased: the error of the mean of 40 is a fortieth.
        left = float((decoded.mean(0) - x).square().sum() / x.square().sum())
        assert left < 1.3 * PROMISED[bits] / 40, name


def test_one_bit_is_drive_as_the_paper_writes_it() -> None:
    """Section 4.2: S = ‖x‖²/‖R(x)‖₁, and what is decoded is R⁻¹(S · sign(R(x)))."""
    x = normal(1024)
    z = x.clone()
    kernels.of(z).rotate(z, 1024, 7, False)
    expected = z.sign() * x.square().sum() / z.abs().sum()
    kernels.of(z).rotate(expected, 1024, 7, True)
    torch.testing.assert_close(round_trip(codec_of("eden:1"), x, seed=7)[1], expected, rtol=1e-4, atol=1e-5)


def test_a_rotation_keeps_lengths_and_comes_back() -> None:
    x = normal(3 * 512 + 128)
    y = x.clone()
    kernels.of(y).rotate(y, 512, 3, False)
    assert float(y.norm()) == pytest.approx(float(x.norm()), rel=1e-5)
    kernels.of(y).rotate(y, 512, 3, True)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


def test_sums_of_rows() -> None:
    assert row_sums(torch.arange(8.0).view(2, 4)).tolist() == [[6.0], [22.0]]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_bytes_are_the_bits_and_a_few_for_scales(bits: int) -> None:
    assert codec_of(f"eden:{bits}").wire_bytes(1 << 20) == 4 + 4 * 256 + (1 << 20) * bits // 8
