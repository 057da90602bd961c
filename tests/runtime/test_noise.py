"""How noisy gradients are, from the norms of what workers computed and of their mean."""

from __future__ import annotations

import torch
from torch import nn

from tightwire.runtime.noise import MOST_NOISE, NoiseWatch, gradient_noise


def test_the_noise_of_drawn_gradients_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.ones(400)
    told: list[list[tuple[float, float]]] = [[], [], [], []]
    for _ in range(40):
        drawn = signal + 2.0 * torch.randn(
            4, 400, generator=generator
        )  # the mean's variance: 4 / 4 per element
        mean = float(drawn.mean(0).square().sum())
        for worker, gradient in zip(told, drawn, strict=True):
            worker.append((float(gradient.square().sum()), mean))
    found = gradient_noise(told)
    assert found is not None
    assert 0.9 < found < 1.1


def test_noise_that_nothing_tells_is_not_known_and_no_signal_is_a_lot() -> None:
    assert gradient_noise([]) is None
    assert gradient_noise([[(1.0, 1.0)]]) is None
    assert gradient_noise([[(1.0, 1.0)], []]) is None
    assert gradient_noise([[(0.0, 0.0)]] * 2) is None
    assert gradient_noise([[(1.0, float("nan"))]] * 2) is None
    assert gradient_noise([[(4.0, 1.0)]] * 4) == MOST_NOISE
    assert gradient_noise([[(3.0, 3.0)]] * 4) == 0.0


def test_a_step_of_one_pass_is_heard_and_one_of_several_is_not() -> None:
    model = nn.Linear(3, 2)
    watch = NoiseWatch(model.parameters())
    watch.begin()
    model(torch.ones(1, 3)).sum().backward()
    watch.before_step()
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
    watch.before_step()
    watch.close()
    model(torch.ones(1, 3)).sum().backward()
    watch.before_step()
    assert watch.told() == [(8.0, 8.0)]
