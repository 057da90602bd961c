import torch

from tightwire.kernels._keys import keys_of
from tightwire.kernels.reference._random import random_unit

CPU = torch.device("cpu")


def test_stream_is_uniform() -> None:
    unit = random_unit(0, 1 << 18, seed=1, device=CPU)
    assert unit.min() >= 0
    assert unit.max() < 1
    counts = torch.histc(unit, 64, 0, 1)
    expected = unit.numel() / 64
    # 63 degrees of freedom: chi-square beyond 110 has a probability of 2e-4.
    assert ((counts - expected) ** 2 / expected).sum() < 110


def test_neighbours_and_seeds_are_unrelated() -> None:
    streams = torch.stack([random_unit(0, 1 << 16, seed, CPU) for seed in range(4)]).double()
    lagged = torch.cat([streams, streams.roll(1, 1), streams.roll(16, 1)])
    correlation = torch.corrcoef(lagged) - torch.eye(12)
    assert correlation.abs().max() < 0.02


def test_a_slice_has_the_randomness_of_its_place() -> None:
    assert torch.equal(random_unit(0, 1000, 7, CPU)[300:], random_unit(300, 700, 7, CPU))


def test_any_integer_is_a_seed() -> None:
    keys = {keys_of(seed) for seed in (0, 1, -1, 2**63, 2**64 - 2, 12345678901234567890)}
    assert len(keys) == 6
    assert all(0 <= key < 2**32 for pair in keys for key in pair)
