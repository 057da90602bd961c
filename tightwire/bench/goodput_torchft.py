"""One worker of `bench goodput` that trains by torchft's own DiLoCo, over Gloo: what Tightwire is compared with.

Each worker is a replica group of its own, with a store and a manager, under the same lighthouse and the same faults. A
round that torchft does not commit sets parameters back to those of the round before, so that its steps are made again:
they are told under the same numbers, and count once. A worker that ends by an error kills itself, so that the lab
starts it anew, as torchrun would.

Run as a module, `python -m tightwire.bench.goodput_torchft JSON`.

Source: torchft 0.2.0, github.com/meta-pytorch/torchft, torchft/local_sgd.py, torchft/manager.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from tightwire.bench.goodput import DONE, GoodputBench
from tightwire.bench.goodput_worker import JobClock, half_a_step, job_of, tell
from tightwire.transport.addresses import own_candidates

# For a quorum: workers ask once a round, and the slowest of them may be in a step.
QUORUM_S: Final = 60
c10d: Final[Any] = dist  # torch does not type its stores


def main() -> None:
    """Is one worker."""
    bench = GoodputBench(**json.loads(sys.argv[1]))
    try:
        train(bench)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    print(DONE, flush=True)
    os._exit(0)  # its native threads outlast the interpreter


def train(bench: GoodputBench) -> None:
    """Trains until the time is over."""
    host = urlsplit(os.environ["TORCHFT_LIGHTHOUSE"]).hostname or ""
    candidates = own_candidates(host)
    mine = candidates.named or candidates.route or "127.0.0.1"
    os.environ.setdefault("RUST_LOG", "warn")  # else it logs every quorum
    # By it torchft tells others where it is; hosts of a lab have no names of their own.
    socket.gethostname = lambda: mine
    from torchft.local_sgd import DiLoCo
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    every = int(bench.plan.rpartition(":")[2])
    store = c10d.TCPStore(mine, 0, None, True, wait_for_workers=False)
    model, inner, x = job_of(bench)
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    clock = JobClock()

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        inner.load_state_dict(state["inner"])
        clock.load_state_dict(state["clock"])

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "inner": inner.state_dict(), "clock": clock.state_dict()}

    limit = timedelta(seconds=bench.deadline_s)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit),
        load_state_dict=load,
        state_dict=state,
        min_replica_size=1,
        use_async_quorum=False,
        timeout=limit,
        quorum_timeout=timedelta(seconds=QUORUM_S),
        connect_timeout=limit,
        rank=0,
        world_size=1,
        store_addr=mine,
        store_port=store.port,
        hostname=mine,
    )
    with DiLoCo(manager, [model], inner, outer, sync_every=every) as diloco:
        while clock.seconds < bench.seconds:
            clock.begin()
            inner.zero_grad()
            half_a_step(bench, model, x)
            inner.step()
            rounds, members = manager.current_step(), max(1, manager.num_participants())
            tell(rounds * every + diloco._local_step, 0, members, rounds)


if __name__ == "__main__":
    main()
