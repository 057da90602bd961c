"""Profiles derived without running anything, by hand and from the meta device."""

import pytest
import torch
from torch import nn

from tightwire.errors import FileError
from tightwire.profile.devices import DEVICES, DeviceFacts, derive, device
from tightwire.profile.models import MODELS, model_shape
from tightwire.profile.shapes import module_shape


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("on", ["a100", "rtx2080ti"])
def test_every_model_on_a_device(name: str, on: str) -> None:
    shape = model_shape(name)
    profile = derive(shape, device(on), batch=2)
    assert profile.num_bytes == 4 * shape.numel
    assert profile.backward_s == pytest.approx(2 * profile.forward_s)
    ready = [p.ready_s for p in profile.parameters]
    assert ready == sorted(ready)
    assert derive(shape, device(on), batch=4).forward_s == pytest.approx(2 * profile.forward_s)
    assert profile.least_memory_bytes == 16 * shape.numel


def test_operations_over_the_speed_that_is_reached() -> None:
    slow = DeviceFacts(
        name="slow", flops_per_s=1e12, memory_bytes_per_s=1e11, memory_bytes=10**9, efficiency=0.5
    )
    shape = model_shape("resnet50")
    waits_s = 8 * 2 * shape.kept_values / 1e11 / 3  # backward twice as long as forward
    assert derive(shape, slow, batch=3).forward_s == pytest.approx(
        3 * (shape.forward_flops / 0.5e12 + waits_s)
    )


@pytest.mark.parametrize(
    ("model", "length", "on", "samples_per_s"),
    [
        ("resnet50", None, "v100", 1180),  # NVIDIA's deep learning examples, mixed precision: 1,160 to 1,200
        ("resnet50", None, "a100", 2470),
        ("resnet50", None, "rtx2080ti", 253.1),  # Shi et al., arXiv:2005.13247, single precision, alone
        ("bert-base", 64, "rtx2080ti", 212.8),
    ],
)
def test_published_speeds_are_met_within_a_fifth(
    model: str, length: int | None, on: str, samples_per_s: float
) -> None:
    profile = derive(model_shape(model, length), device(on), batch=64)
    assert 64 / profile.compute_s == pytest.approx(samples_per_s, rel=0.2)
    reach = 1.28 * profile.compute_uncertainty
    assert (1 - reach) < 64 / profile.compute_s / samples_per_s < (1 + reach)


def test_a_block_keeps_what_the_literature_counts() -> None:
    length, width, heads = 1024, 1024, 16
    scored = model_shape("bert-large", length).kept_values * 2 / 24
    # Korthikanti et al., equation 1: 34·s·h + 5·a·s² bytes of 16 bits, where 2 are masks that are not counted here.
    assert scored == pytest.approx(34 * length * width + 5 * heads * length**2, rel=0.06)


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(FileError, match="'abacus' is no known device; known: v100"):
        device("abacus")
    with pytest.raises(FileError, match="at least 1"):
        derive(model_shape("gpt2"), DEVICES["t4"], batch=0)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))


def test_any_module_on_the_meta_device() -> None:
    shape = module_shape(net, torch.empty(5, 8, device="meta"), samples=5)
    assert [(layer.name, layer.forward_flops) for layer in shape.layers] == [
        ("0", 2 * 8 * 16),
        ("2", 2 * 16 * 4),
    ]
    assert shape.numel == 8 * 16 + 16 + 16 * 4


def test_a_transformer_layer_counts_its_attention() -> None:
    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).train()

    shape = module_shape(build, torch.empty(2, 10, 32, device="meta"), samples=2)
    assert shape.numel == sum(p.numel() for p in build().parameters())
    assert shape.forward_flops >= 2 * 10 * (4 * 32 * 32 + 2 * 32 * 64)


def test_a_module_that_looks_at_values_is_refused() -> None:
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    with pytest.raises(FileError, match="needs values"):
        module_shape(Looks, torch.empty(2, device="meta"))


def test_a_batch_beyond_any_step_is_refused_as_a_batch() -> None:
    with pytest.raises(FileError, match="batch: 100,000,000,000 samples"):
        derive(model_shape("gpt2"), device("a100"), 10**11)
