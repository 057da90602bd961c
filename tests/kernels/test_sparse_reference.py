"""The sparse kernels beyond selection: what every implementation must agree on, and what they promise."""

import pytest
import torch
from torch import Tensor

from tests.kernels.test_kernels import public
from tests.kernels.test_sparse import NUMEL, inputs
from tightwire.kernels import cpu, reference, reference_sparse
from tightwire.kernels.cpu import sparsely
from tightwire.kernels.odds import NUM_BINS, ONE, SHIFT, scale_of

FINITE = {name: x for name, x in inputs().items() if name != "not finite"}


def test_reference_has_every_sparse_kernel_with_the_same_signature() -> None:
    assert public(sparsely) == public(reference_sparse)
    for name in public(sparsely):
        assert getattr(cpu, name) is getattr(sparsely, name)
        assert getattr(reference, name) is getattr(reference_sparse, name)


@pytest.mark.parametrize("name", inputs())
@pytest.mark.parametrize("block", [64, 1024])
def test_blocks_are_exact_whatever_was_guessed(name: str, block: int) -> None:
    x = inputs()[name]
    for k in (1, 2, 11, 48, 60):
        kept = (k, min(k, NUMEL % block))
        found = []
        for kernels in (cpu, reference):
            left = x.clone()
            message = torch.empty((NUMEL // block * kept[0] + kept[1]) * 6, dtype=torch.uint8)
            kernels.select_blocks(left, message, block, kept)
            found.append((left, message))
        for ours, expected in zip(*found, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", FINITE)
def test_odds_use_their_budget_and_never_more(name: str) -> None:
    x = FINITE[name]
    bins = (x.view(torch.int32) & 0x7FFFFFFF) >> SHIFT
    for k in (1, 100, 20_000, NUMEL):
        scale = scale_of(torch.bincount(bins, minlength=NUM_BINS).numpy(), k) / ONE
        odds = (x.abs().double() * scale).nan_to_num().clamp(max=1).sum()
        assert odds <= k * (1 + 1e-9)
        assert odds >= min(k, int((x != 0).sum())) * 8 / 9 - 1


def test_random_places_are_alike_likely() -> None:
    for numel, k in ((1, 1), (10, 3), (100, 100), (1000, 7)):
        drawn, again = torch.empty(2, 300, k, dtype=torch.int64).unbind()
        for seed in range(300):
            cpu.places(numel, seed, drawn[seed])
            reference.places(numel, seed, again[seed])
        assert torch.equal(drawn, again)
        assert (drawn.diff(dim=1) > 0).all()
        assert drawn.min() >= 0
        assert drawn.max() < numel
        counts = torch.bincount(drawn.flatten(), minlength=numel)
        expected = 300 * k / numel
        assert (counts - expected).abs().max() < 6 * expected**0.5 + 2


def test_a_sketch_finds_what_is_large() -> None:
    x = torch.randn(NUMEL, generator=torch.Generator().manual_seed(0))
    heavy = torch.arange(17, NUMEL, 5000)
    x[heavy] *= 1000
    for rows in (3, 5):
        table, estimate = torch.zeros(rows, 16 * 1024), torch.empty(NUMEL)
        cpu.sketch(x, table, 3)
        cpu.unsketch(table, estimate, 3)
        largest = estimate.abs().topk(10).indices
        assert set(largest.tolist()) <= set(heavy.tolist())


def test_sketches_add() -> None:
    a, b = torch.arange(1000.0), torch.ones(1000)
    tables: list[Tensor] = [torch.zeros(3, 160) for _ in range(2)]
    cpu.sketch(a, tables[0], 5)
    cpu.sketch(b, tables[0], 5)
    cpu.sketch(a + b, tables[1], 5)
    torch.testing.assert_close(tables[0], tables[1])


def test_hashes_of_tables_agree() -> None:
    x = torch.randn(1003, generator=torch.Generator().manual_seed(0))
    for rows in (1, 3, 5):
        for kernels in ((cpu, reference), (reference, cpu)):
            tables = [torch.zeros(rows, 16 * 9) for _ in kernels]
            estimates = [torch.empty(1003) for _ in kernels]
            for loops, table, estimate in zip(kernels, tables, estimates, strict=True):
                loops.sketch(x, table, 11)
                loops.unsketch(table, estimate, 11)
            assert torch.equal(*tables)
            assert torch.equal(*estimates)
