"""The sparse kernels beyond selection: what every implementation must agree on, and what they promise."""

import pytest
import torch
from torch import Tensor

from tests.kernels.test_sparse import NUMEL, inputs
from tightwire.compression.dct import _waves
from tightwire.kernels import cpu, reference
from tightwire.kernels._rotations import cosine_network, cosine_scale
from tightwire.kernels._sampling import NUM_BINS, ONE, SHIFT, probability_scale

FINITE = {name: x for name, x in inputs().items() if name != "not finite"}


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
        scale = probability_scale(torch.bincount(bins, minlength=NUM_BINS).numpy(), k) / ONE
        odds = (x.abs().double() * scale).nan_to_num().clamp(max=1).sum()
        assert odds <= k * (1 + 1e-9)
        assert odds >= min(k, int((x != 0).sum())) * 8 / 9 - 1


def test_random_places_are_alike_likely() -> None:
    for numel, k in ((1, 1), (10, 3), (100, 100), (1000, 7)):
        drawn, again = torch.empty(2, 300, k, dtype=torch.int64).unbind()
        for seed in range(300):
            cpu.shared_indices(numel, seed, drawn[seed])
            reference.shared_indices(numel, seed, again[seed])
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
        cpu.add_to_sketch(x, table, 3)
        cpu.estimate_from_sketch(table, estimate, 3)
        largest = estimate.abs().topk(10).indices
        assert set(largest.tolist()) <= set(heavy.tolist())


def test_sketches_add() -> None:
    a, b = torch.arange(1000.0), torch.ones(1000)
    tables: list[Tensor] = [torch.zeros(3, 160) for _ in range(2)]
    cpu.add_to_sketch(a, tables[0], 5)
    cpu.add_to_sketch(b, tables[0], 5)
    cpu.add_to_sketch(a + b, tables[1], 5)
    torch.testing.assert_close(tables[0], tables[1])


def test_hashes_of_tables_agree() -> None:
    x = torch.randn(1003, generator=torch.Generator().manual_seed(0))
    for rows in (1, 3, 5):
        for kernels in ((cpu, reference), (reference, cpu)):
            tables = [torch.zeros(rows, 16 * 9) for _ in kernels]
            estimates = [torch.empty(1003) for _ in kernels]
            for loops, table, estimate in zip(kernels, tables, estimates, strict=True):
                loops.add_to_sketch(x, table, 11)
                loops.estimate_from_sketch(table, estimate, 11)
            assert torch.equal(*tables)
            assert torch.equal(*estimates)


@pytest.mark.parametrize("name", inputs())
@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_the_leaning_sign_is_found_and_marked(name: str, sign: str) -> None:
    x = inputs()[name][:20_000]
    x = {"both": x, "positive": x.abs(), "negative": -x.abs()}[sign].contiguous()
    for k in (1, 100, 9000):
        ended = []
        for kernels in (cpu, reference):
            left, found = x.clone(), torch.zeros(8 * k, dtype=torch.uint8)
            message, out = torch.full((4 * k,), 7, dtype=torch.uint8), torch.ones(x.numel())
            count, mean = kernels.select_dominant_sign(left, found)
            assert torch.equal(left.view(torch.int32), x.view(torch.int32))
            if count >= 0:
                kernels.encode_sparse_signs(left, found, count, mean, message)
                assert kernels.decode_sparse_signs(message, count, mean, out, False)
                torch.testing.assert_close(out + left, x, rtol=1e-6, atol=1e-6 * mean)
                assert kernels.decode_sparse_signs(message, count, mean, out, True)
            assert (count < 0) == (not x.isfinite().all())
            ended.append((torch.tensor([count, mean], dtype=torch.float64), left, message, out))
        if ended[0][0][0] >= 0:
            assert all(torch.equal(ours, expected) for ours, expected in zip(*ended, strict=True))


@pytest.mark.parametrize("kernels", [cpu, reference])
@pytest.mark.parametrize("places", [[3, 2], [1, 1], [0, 8]])
def test_marks_that_cannot_be_change_nothing(kernels: object, places: list[int]) -> None:
    message, out = torch.tensor(places, dtype=torch.int32).view(torch.uint8), torch.ones(8)
    assert not kernels.decode_sparse_signs(message, 2, 1.0, out, False)  # type: ignore[attr-defined]
    assert torch.equal(out, torch.ones(8))


def test_mean_magnitudes() -> None:
    for kernels in (cpu, reference):
        for values, mean in (
            ([], 0.0),
            ([1.0, -2.0], 1.5),
            ([3e38, -3e38], 3e38),
            ([1.0, float("inf")], None),
        ):
            found = kernels.mean_magnitude(torch.tensor(values).view(torch.uint8))
            assert found != found if mean is None else found == pytest.approx(mean)


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("chunk", [64, 128, 256])
def test_the_strongest_waves_are_found_and_taken_away(name: str, chunk: int) -> None:
    x = FINITE[name][:5003]
    waves = _waves(chunk, torch.device("cpu"))
    for kept in (1, 2, 3, 8, 9, 20, 40):
        ended = []
        for kernels in (cpu, reference):
            left, message = x.clone(), torch.empty(-(-5003 // chunk) * kept * 6, dtype=torch.uint8)
            kernels.encode_cosines(left, waves, (1e38, 1e37), kept, message)
            out = torch.zeros_like(x)
            assert kernels.decode_cosines(message, out, waves, kept, 1)
            ended.append((left, message, out))
        assert all(torch.equal(ours, expected) for ours, expected in zip(*ended, strict=True))
        torch.testing.assert_close(ended[0][0] + ended[0][2], x, rtol=1e-5, atol=1e-5 * float(x.abs().max()))


@pytest.mark.parametrize("n", [1, 2, 4, 64, 256])
def test_rotations_make_a_cosine_transform(n: int) -> None:
    """Of the matrix's transpose, for waves are orthogonal: coefficients times waves are the elements."""
    network, x = cosine_network(n), torch.randn(n, generator=torch.Generator().manual_seed(n)).double()
    y = x * cosine_scale(n)
    for (p, q), (a, b, c, d) in zip(network.pairs.tolist(), network.weights.tolist(), strict=True):
        y[p], y[q] = a * y[p] + b * y[q], c * y[q] + d * y[p]
    waves = _waves(n, torch.device("cpu")).double()
    torch.testing.assert_close(y[network.order] @ waves, x, rtol=1e-5, atol=1e-5)
