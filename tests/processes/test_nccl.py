"""Waits for NCCL between real processes, where a rank dies that NCCL itself would wait for until the end of time."""

from __future__ import annotations

import pytest

from tests.workers import run_processes

# Of torch's process group, what ranks wait for each other with: what rank 0 tells, at the store that it keeps.
STAND_IN = """
from tightwire.errors import PeerError
from tightwire.transport import communicators

class StandIn:
    class Options:
        pass

    def __init__(self, store, rank, size, options):
        self.store = store
        if WHERE == "made" and world.rank == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)

    def eager_connect_single_device(self, at):
        if world.rank == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)
        self.store.get("what is never told")

dist.ProcessGroupNCCL = StandIn
world = transport.init(deadline_s=60)
node = world.group([1, 2])
try:
    if node is None:
        world.barrier()
    else:
        communicators.connect_nccl(node, "node", torch.device("cpu"))
except PeerError as error:
    answer([list(error.ranks), str(error)])
os._exit(0)
"""


@pytest.mark.parametrize(("victim", "where"), [(1, "made"), (1, "connected"), (2, "connected")])
def test_who_dies_while_nccl_connects_is_named_as_the_world_numbers_it(victim: int, where: str) -> None:
    ended = run_processes(3, f"VICTIM, WHERE = {victim}, {where!r}\n{STAND_IN}", check=False, timeout_s=50)
    (ranks, text), (blamed, _) = ended[3 - victim].answer, ended[0].answer
    assert ranks == blamed == [victim]
    assert f"rank {victim} died while this worker waited to connect to all ranks by NCCL" in text


def test_a_dead_rank_ends_what_a_device_waits_for_and_no_wait_of_who_goes_on_without() -> None:
    ended = run_processes(
        2,
        """
        from tightwire.errors import PeerError
        from tightwire.transport.blame import Wait
        pair = transport.init(deadline_s=2).group([1, 0])
        if rank == 0:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        other = frozenset({1})  # as the group numbers it
        tolerant = pair.watch(Wait(other, "for gossip"))
        while pair._liveness.lost != {0}:
            time.sleep(0.1)
        tolerant.check()
        tolerant.close()
        watch = pair.watch(Wait(other, "for a device"), ends_run=True)
        try:
            while True:
                watch.check()
                time.sleep(0.1)
        except PeerError as error:
            answer([list(error.ranks), str(error)])
        os._exit(0)
        """,
        check=False,
        timeout_s=50,
    )
    ranks, text = ended[1].answer
    assert ranks == [0]
    assert "rank 0 died while this worker waited for a device" in text
