"""Whoever breaks is named, by everybody, and nobody waits past the deadline."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.transport.laws import pass_on
from tightwire.errors import PeerError, TransportError
from tightwire.transport import (
    Cut,
    Delay,
    Drop,
    Fault,
    Faulty,
    Freeze,
    Single,
    Transport,
    run_threads,
)


def blames(size: int, *faults: Fault, deadline_s: float = 0.5) -> dict[int, tuple[int, ...]]:
    """Runs rings of messages with faults; returns whom each rank blames."""
    blamed: dict[int, tuple[int, ...]] = {}
    done = threading.Barrier(size - sum(isinstance(fault, Freeze) for fault in faults) + 1)

    def worker(transport: Transport) -> None:
        faulty = Faulty(transport, *faults)
        try:
            for _ in range(12):
                pass_on(faulty, 100)
        except PeerError as error:
            blamed[transport.rank] = error.ranks
        except TransportError:
            pass
        done.wait()

    runner = threading.Thread(target=lambda: run_threads(size, worker, deadline_s=deadline_s), daemon=True)
    runner.start()
    done.wait(30)
    return blamed


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_frozen_rank_is_named_by_every_other(size: int) -> None:
    assert blames(size, Freeze(rank=1, at_send=3)) == {r: (1,) for r in range(size) if r != 1}


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_that_was_cut_off_is_named_by_every_other(size: int) -> None:
    assert blames(size, Cut(rank=1, at_send=3)) == {r: (1,) for r in range(size) if r != 1}


def test_a_lost_message_ends_the_run() -> None:
    found = blames(4, Drop(rank=1, at_send=4))
    assert found[2] == (1,)


def test_a_delay_within_the_deadline_is_no_failure() -> None:
    assert blames(3, Delay(rank=1, at_send=2, seconds=0.05), deadline_s=10.0) == {}


def test_ranks_that_wait_for_each_other_are_all_named() -> None:
    def worker(transport: Transport) -> None:
        transport.irecv(torch.zeros(1), 1 - transport.rank, tag=transport.rank).wait()

    with pytest.raises(PeerError, match=r"ranks 0 and 1 wait for each other .* tag [01]") as caught:
        run_threads(2, worker, deadline_s=0.3)
    assert caught.value.ranks in ((0,), (1,))  # not itself


def test_a_late_rank_is_named() -> None:
    def worker(transport: Transport) -> None:
        if transport.rank == 2:
            threading.Event().wait(1.0)
        else:
            transport.exchange(b"")

    with pytest.raises(PeerError, match=r"rank 2 is alive but did not reach this point within 0\.3 s"):
        run_threads(4, worker, deadline_s=0.3)


def test_a_rank_that_told_why_it_fails_is_named_with_its_error() -> None:
    def worker(transport: Transport) -> None:
        channel = transport.channel()
        if transport.rank == 2:
            transport.fail(ValueError("bad batch"))
            channel.close()
        else:
            channel.barrier()

    with pytest.raises(PeerError, match=r"rank 2 failed while this worker waited .*: ValueError: bad batch"):
        run_threads(4, worker, deadline_s=60.0)


def test_a_rank_that_leaves_is_named_at_once() -> None:
    def worker(transport: Transport) -> None:
        if transport.rank == 2:
            transport.close()
        else:
            pass_on(transport, 10)

    with pytest.raises(PeerError, match="rank 2 left while this worker waited to receive 40 bytes, tag 0"):
        run_threads(4, worker, deadline_s=60.0)


def test_the_cause_is_raised_not_the_peer_errors_it_provokes() -> None:
    def worker(transport: Transport) -> None:
        if transport.rank == 2:
            raise ZeroDivisionError("bad batch")
        transport.barrier()

    with pytest.raises(ZeroDivisionError) as caught:
        run_threads(4, worker, deadline_s=60.0)
    assert caught.value.__notes__ == ["raised on rank 2 of 4"]


def test_blame_on_a_group_names_world_ranks() -> None:
    def worker(transport: Transport) -> None:
        group = transport.group([2, 3])
        if group is not None and transport.rank == 2:
            group.irecv(torch.zeros(1), 1, 0).wait()

    with pytest.raises(PeerError) as caught:
        run_threads(4, worker, deadline_s=0.3)
    assert caught.value.ranks == (3,)


def test_a_closed_transport_says_so() -> None:
    def worker(transport: Transport) -> None:
        transport.barrier()
        transport.close()
        transport.isend(torch.zeros(1), 1 - transport.rank, 0)

    with pytest.raises(TransportError, match=r"after close\(\)"):
        run_threads(2, worker)


def test_messages_of_unequal_size_say_so() -> None:
    def worker(transport: Transport) -> None:
        if transport.rank == 0:
            transport.isend(torch.zeros(3), 1, 0).wait()
        else:
            transport.irecv(torch.zeros(2), 0, 0).wait()

    with pytest.raises(TransportError, match="rank 0 sent 12 bytes; sizes must agree"):
        run_threads(2, worker)


def test_single_has_nobody_to_talk_to() -> None:
    with pytest.raises(TransportError, match="a peer is another rank"):
        Single().irecv(torch.zeros(1), 0, 0)
