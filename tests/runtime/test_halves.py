"""ACCO against its algorithm written out, with an optimizer that has state."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tests.runtime.training import Net, assert_close, job, loss_of, momentum, values
from tightwire.transport import Transport, run_threads

WORKERS = 2


def mean_gradient(model: Net, half: int) -> list[Tensor]:
    loss = sum(loss_of(model, rank, half) for rank in range(WORKERS)) / WORKERS
    return list(torch.autograd.grad(loss, list(model.parameters())))  # type: ignore[arg-type]


def stepped(
    model: Net, optimizer_state: dict[str, object], gradients: list[Tensor]
) -> tuple[Net, dict[str, object]]:
    """Returns a copy of the model after a step, and the optimizer's state then."""
    model = copy.deepcopy(model)
    optimizer = momentum(model.parameters())
    optimizer.load_state_dict(copy.deepcopy(optimizer_state))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    return model, optimizer.state_dict()


def written_out(halves: int) -> list[list[Tensor]]:
    """Algorithm 1 of arXiv:2406.02613; returns the parameters after each half. g̃ is of odd halves, g of even ones."""
    theta = Net(seed=0)
    state = momentum(theta.parameters()).state_dict()
    guess, guessed, seen = theta, list[Tensor](), []
    gradient: list[Tensor] = []
    for half in range(1, halves + 1):
        if half % 2:  # g̃ at the guess; meanwhile the mean of g arrived
            new = mean_gradient(guess, half - 1)
            if half > 1:
                both = [(a + b) / 2 for a, b in zip(gradient, guessed, strict=True)]
                theta, state = stepped(theta, state, both)
            guessed = new
            seen.append(values(theta))
        else:  # g at θ; meanwhile the mean of g̃ arrived
            gradient = mean_gradient(theta, half - 1)
            guess, _ = stepped(theta, state, guessed)
            seen.append(values(guess))
    return seen


def test_it_is_the_papers_algorithm() -> None:
    def worker(transport: Transport) -> list[list[Tensor]]:
        with job(transport, "acco", optimizer=momentum) as j:
            for step in range(7):
                j.step(step)
        return j.seen

    expected = written_out(7)
    for seen in run_threads(WORKERS, worker, deadline_s=20):
        for mine, theirs in zip(seen, expected, strict=True):
            assert_close(mine, theirs, atol=1e-5)
