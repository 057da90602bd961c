"""Momentum correction masks what was chosen and sent, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.laws.test_stages import averager, values
from tightwire.architecture.round import Round
from tightwire.transport import Transport, run_threads

SHAPES = {"matrix": (40, 30), "vector": (300,)}


def velocities(
    transport: Transport, compression: str, rounds: int = 4
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns, per round, the velocity that stands, what it would be without a mask, and where the mean is not 0."""
    a = averager(transport, compression, {name: torch.zeros(shape) for name, shape in SHAPES.items()})
    found, velocity = [], torch.zeros_like(a.bucket.flat)
    for number in range(1, rounds + 1):
        given = values(a.bucket.flat, transport.rank, number)
        unmasked = 0.9 * velocity + given
        a.bucket.flat.copy_(given)
        a.run(Round(number=number, seed=number))
        mean = a.bucket.flat.clone()
        a.keep()
        velocity = torch.cat([kinds["momentum"].flatten() for kinds in a.memory().values()])
        found.append((velocity.clone(), unmasked, mean != 0))
    return found


@pytest.mark.parametrize(
    "compression",
    [
        "none+momentum:0.9",
        "bf16+momentum:0.9",
        "int8+ef+momentum:0.9",
        "int4+ef+momentum:0.9",
        "powersgd:2+ef+momentum:0.9",
        "sparcml:0.6+ef+momentum:0.9",
        "wangni:0.2+momentum:0.9",
        "topk:0.1+ef21+momentum:0.9",
        "int8:rounding=stochastic+diana:0.3+momentum:0.9",
        "sign+momentum:0.9",
    ],
)
def test_what_is_not_chosen_among_keeps_its_velocity(compression: str) -> None:
    for rounds in run_threads(2, lambda t: velocities(t, compression), deadline_s=20):
        for velocity, unmasked, _ in rounds:
            torch.testing.assert_close(velocity, unmasked)


@pytest.mark.parametrize(
    "compression",
    [
        "topk:0.1+ef+momentum:0.9",
        "blocktopk:0.1+ef+momentum:0.9",
        "stc:0.1+ef+momentum:0.9",
        "sbc:0.1+ef+momentum:0.9",
        "strom:0.5,ratio=0.2+ef+momentum:0.9",
        "randomk:0.1+ef+momentum:0.9",
        "sketch:0.1+ef+momentum:0.9",
        "doublesqueeze:topk:0.1+ef+momentum:0.9",
        "topk:0.6+ef+momentum:0.9",
    ],
)
def test_what_was_chosen_and_arrived_starts_anew(compression: str) -> None:
    """Masked are some elements, all of them in the mean; every element of the mean was sent by somebody."""
    results = run_threads(3, lambda t: velocities(t, compression), deadline_s=20)
    for outcomes in zip(*results, strict=True):
        masked = [velocity.eq(0) & unmasked.ne(0) for velocity, unmasked, _ in outcomes]
        arrived = outcomes[0][2]
        for (velocity, unmasked, _), mask in zip(outcomes, masked, strict=True):
            assert mask.any()
            assert not (mask & ~arrived).any()
            torch.testing.assert_close(velocity[~mask], unmasked[~mask])
        if "doublesqueeze" not in compression:
            assert torch.equal(torch.stack(masked).any(0), arrived)


def test_an_exact_round_sends_no_leftover_to_an_optimizer_that_squares_it() -> None:
    """0/1 Adam: the mean of an exact round is that of its gradients alone, and what waits goes on waiting."""

    def worker(transport: Transport) -> list[Tensor]:
        a = averager(transport, "doublesqueeze+ef+ema:0.9+dense-growing:1", {"w": torch.zeros(2000)})
        seen = []
        for number in range(1, 9):
            before = a.memory()["w"]["ef"].clone()
            a.bucket.flat.copy_(values(a.bucket.flat, transport.rank, number))
            a.run(Round(number=number, seed=number))
            seen.append(a.bucket.flat.clone())
            a.keep()
            if number in (1, 2, 4, 8):
                assert torch.equal(a.memory()["w"]["ef"], before)
        return seen

    like = torch.zeros(2000)
    for means in run_threads(3, worker, deadline_s=20):
        for number in (1, 2, 4, 8):
            exact = torch.stack([values(like, rank, number) for rank in range(3)]).mean(0)
            torch.testing.assert_close(means[number - 1], exact, rtol=1e-4, atol=1e-5)
