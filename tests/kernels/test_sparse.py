import pytest
import torch
from torch import Tensor

from tightwire.kernels import cpu, reference

NUMEL = 100_000


def select(kernels: object, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    left, message = x.clone(), torch.empty(k * (4 + x.element_size()), dtype=torch.uint8)
    kernels.select_largest(left, message, k)  # type: ignore[attr-defined]
    return message, left


def inputs() -> dict[str, Tensor]:
    x = torch.randn(NUMEL, generator=torch.Generator().manual_seed(0))
    place = torch.arange(NUMEL)
    return {
        "normal": x,
        "heavy-tailed": x**9,
        "constant: every sample ties": torch.full((NUMEL,), -2.0),
        "mostly zero": x * (place % 1000 == 0),
        "two values": torch.where(place % 3 == 0, 1.0, -0.5),
        "large ones all at the end, where few samples fall": torch.where(place > NUMEL - 900, x * 100, x),
        "ascending": place.float(),
        "descending": -place.flip(0).float(),
        "a period that sampling could miss": torch.where(place % 16 == 5, 10.0 + x, x * 0.1),
        "not finite": torch.where(place % 50 == 0, torch.inf, x),
    }


@pytest.mark.parametrize("name", inputs())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_selection_is_exact_whatever_the_sample_says(name: str, dtype: torch.dtype) -> None:
    x = inputs()[name].to(dtype)
    for k in (1, 2, 100, 1000, 12_000, 50_000, NUMEL):
        for ours, expected in zip(select(cpu, x, k), select(reference, x, k), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("numel", [1, 2, 63, 64, 65, 1023, 1024, 1025, 4100])
def test_small_sizes_and_every_k(numel: int) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).round(decimals=1)
    for k in {1, 2, numel // 50, numel // 9, numel // 2, numel - 1, numel} - {0}:
        if k <= numel:
            for ours, expected in zip(select(cpu, x, k), select(reference, x, k), strict=True):
                assert torch.equal(ours, expected)


@pytest.mark.parametrize("kernels", [cpu, reference])
@pytest.mark.parametrize("indices", [[3, 2], [1, 1], [-1, 2], [0, 8]])
def test_impossible_indices_change_nothing(kernels: object, indices: list[int]) -> None:
    message = torch.cat(
        [torch.tensor(indices, dtype=torch.int32).view(torch.uint8), torch.zeros(8, dtype=torch.uint8)]
    )
    out = torch.ones(8)
    assert not kernels.scatter_largest(message, out, 2, False)  # type: ignore[attr-defined]
    assert torch.equal(out, torch.ones(8))
