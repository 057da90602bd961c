"""Whether a tensor is finite, found by its sum where that suffices."""

import pytest
import torch

from tightwire.compression.checks import is_finite

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [0, 1, 7, 1000, 100_003])
def test_finite_tensors_are_finite_even_where_their_sum_is_not(dtype: torch.dtype, numel: int) -> None:
    assert is_finite(torch.zeros(numel, dtype=dtype))
    assert is_finite(torch.full((numel,), torch.finfo(dtype).max, dtype=dtype))
    assert is_finite(torch.full((numel,), -torch.finfo(dtype).max, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 500, -1])
def test_one_element_spoils_all(dtype: torch.dtype, spoiled: float, place: int) -> None:
    x = torch.ones(100_003, dtype=dtype)
    x[place] = spoiled
    assert not is_finite(x)
    x[1] = -spoiled  # which cancels nothing
    assert not is_finite(x)
