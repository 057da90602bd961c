"""Every law of tests/transport/laws.py on every transport that needs no second process."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from tests.transport.laws import ALONE, LAWS
from tightwire.transport import Counting, Drop, Faulty, Shaped, Single, Transport, native_bytes, run_threads

Wrap = Callable[[Transport], Transport]
WRAPPERS: dict[str, Wrap] = {
    "plain": lambda transport: transport,
    "counting": Counting,
    "shaped": lambda transport: Shaped(transport, rate_bytes_per_s=1e9, latency_s=0.0002),
    "faulty": lambda transport: Faulty(transport, Drop(rank=0, at_send=10**9)),
}
Law = Callable[[Transport], None]


@pytest.mark.parametrize("law", ALONE, ids=lambda law: law.__name__)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_world_of_one(law: Law, wrap: Wrap) -> None:
    law(wrap(Single()))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_threads(law: Law, wrap: Wrap, size: int) -> None:
    run_threads(size, lambda transport: law(wrap(transport)), deadline_s=20.0)


def test_native_bytes_are_those_of_a_ring() -> None:
    for size, numel in itertools.product(range(1, 18), (0, 1, 7, 1000, 4097)):
        sent = [native_bytes(numel, 4, size, rank) for rank in range(size)]
        assert sum(sent) == 2 * (size - 1) * numel * 4, (size, numel)
        assert max(sent) - min(sent) <= 2 * 4, (size, numel)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_broadcast_sends_the_tensor_once_to_each_other_rank(size: int) -> None:
    def worker(transport: Transport) -> int:
        counting = Counting(transport)
        counting.broadcast(torch.zeros(10), src=size - 1)
        return counting.bytes_sent

    assert sum(run_threads(size, worker)) == 40 * (size - 1)
