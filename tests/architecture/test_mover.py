"""Movements that are no all-reduce: what each rank ends with, and the bytes they say they send."""

import pytest
import torch
from torch import Tensor

from tightwire.architecture import COLLECTIVES, Mover, build
from tightwire.errors import ProgramError, TensorError
from tightwire.transport import Counting, Transport, run_threads

N, NUMEL = 5, 12_345 * 5


def given(rank: int) -> Tensor:
    return torch.arange(NUMEL, dtype=torch.float64) + 1000 * rank


def moved(name: str, transport: Transport) -> tuple[Mover, Tensor]:
    counting = Counting(transport)
    mover = Mover(build(name, N), counting, numel=NUMEL, dtype=torch.float64, piece_bytes=16384)
    for _ in range(2):  # the second run finds the buffers of the first
        counting.tally.clear()
        buffer = given(transport.rank)
        landing = torch.empty_like(buffer) if name == "all-to-all" else None
        mover.run(buffer, landing)
        assert counting.bytes_sent == mover.bytes_sent
    return mover, buffer if landing is None else landing


def expected(name: str, mover: Mover, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the positions that matter to a rank, and what must be there."""
    everything, total = torch.arange(NUMEL), torch.stack([given(r) for r in range(N)]).sum(0)
    if name == "reduce-scatter":
        mine = mover.chunk(everything, rank)
        return mine, total[mine]
    if name == "all-gather":
        return everything, torch.cat([mover.chunk(given(r), r) for r in range(N)])
    if name == "broadcast":
        return everything, given(0)
    if name == "reduce":
        return (everything, total) if rank == 0 else (everything[:0], total[:0])
    return everything, torch.cat([given(r).chunk(N)[rank] for r in range(N)])


@pytest.mark.parametrize("name", COLLECTIVES)
def test_every_rank_ends_with_what_the_goal_says(name: str) -> None:
    for rank, (mover, ends) in enumerate(run_threads(N, lambda t: moved(name, t), deadline_s=20)):
        where, what = expected(name, mover, rank)
        torch.testing.assert_close(ends[where], what, rtol=0, atol=0)


def test_wrong_buffers_are_refused() -> None:
    def worker(transport: Transport) -> None:
        swap = Mover(build("all-to-all", 2), transport, numel=4, dtype=torch.float32)
        with pytest.raises(TensorError, match="all-to-all needs a landing of its own"):
            swap.run(torch.zeros(4))
        with pytest.raises(TensorError, match="it was built for a contiguous"):
            swap.run(torch.zeros(4), torch.zeros(5))
        with pytest.raises(ProgramError, match="2 ranks need a multiple of 2"):
            Mover(build("all-to-all", 2), transport, numel=5, dtype=torch.float32)
        with pytest.raises(ProgramError, match="reduce was built for 3 ranks"):
            Mover(build("reduce", 3), transport, numel=5, dtype=torch.float32)

    run_threads(2, worker)
