import pytest
import torch

from tightwire.averaging._atomo import draw, probabilities


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "sigma", [[5.0, 1.0, 0.5, 0.1], [1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 0.0, 0.0], [0.0] * 4]
)
def test_odds_are_probabilities_of_as_many_pairs_as_there_can_be(sigma: list[float], count: int) -> None:
    odds = probabilities(torch.tensor(sigma, dtype=torch.float64), count)
    assert ((odds >= 0) & (odds <= 1)).all()
    positive = sum(s > 0 for s in sigma)
    assert float(odds.sum()) == pytest.approx(min(count, positive))


def test_the_expectation_is_the_matrix() -> None:
    matrix = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    left, right = torch.empty(2, 6), torch.empty(2, 5)
    generator = torch.Generator().manual_seed(1)
    total, draws = torch.zeros(6, 5), 4000
    for _ in range(draws):
        draw(matrix, left, right, generator)
        total += left.t() @ right
    torch.testing.assert_close(total / draws, matrix, rtol=0, atol=0.2)
