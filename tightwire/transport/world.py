"""Joining and leaving the world that the launcher describes: the one place that reads the environment."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tightwire.errors import PeerError, TransportError
from tightwire.transport.base import Transport
from tightwire.transport.single import Single

if TYPE_CHECKING:
    import torch

_current: Transport | None = None
_generations = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher such as torchrun tells a worker.

    Attributes:
        rank: this worker.
        size: number of workers.
        host: where they meet.
        port: its TCP port there.
        agent_hosts: the launcher itself listens on that port; else rank 0 does.
    """

    rank: int
    size: int
    host: str
    port: int
    agent_hosts: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Launch | None:
        """Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; None where no launcher set them.

        Raises:
            TransportError: some are set and others not, or one is not a number.
        """
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if not environment.get(name)]
        if {"RANK", "WORLD_SIZE"} <= set(missing):
            return None
        if missing:
            raise TransportError(
                f"the launcher set some of {', '.join(names)} but not {', '.join(missing)}: use torchrun, or "
                "set all four, or none for a world of one"
            )
        try:
            rank, size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        except ValueError as error:
            raise TransportError(f"RANK, WORLD_SIZE and MASTER_PORT must be whole numbers: {error}") from None
        if not 0 <= rank < size:
            raise TransportError(f"RANK is {rank} in a world of {size}: it must be from 0 to {size - 1}")
        agent_hosts = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(rank=rank, size=size, host=environment["MASTER_ADDR"], port=port, agent_hosts=agent_hosts)


def init(*, deadline_s: float = 30.0) -> Transport:
    """Joins torchrun's group and returns this worker's transport; a world of one without torchrun.

    Uses torch.distributed if it is initialised already, else initialises it (Gloo, and NCCL beside it where
    CUDA is) from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where the launcher set them. A second call
    returns the same transport.

    Contract: every worker calls it; blocks until all have joined.

    Args:
        deadline_s: the longest that any wait lasts, this one included.

    Raises:
        PeerError: some workers did not join in time; names them.
        TransportError: the rendezvous is impossible: its port is taken, or an address is wrong.
    """
    global _current
    if _current is None:
        _current = _join(deadline_s)
    return _current


def current() -> Transport:
    """Returns the transport that `init` made.

    Raises:
        TransportError: `init` has not been called.
    """
    if _current is None:
        raise TransportError("there is no transport yet: call tightwire.init() first, on every worker")
    return _current


def shutdown() -> None:
    """Leaves the world: closes the transport that `init` made. Call it after the last collective."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def device() -> torch.device:
    """Returns this worker's device: cuda:LOCAL_RANK where CUDA is, else cpu."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _join(deadline_s: float) -> Transport:
    import torch.distributed as dist

    is_initialized = dist.is_available() and dist.is_initialized()
    launch = None if is_initialized else Launch.from_environment(os.environ)
    if not launch and not is_initialized:
        return Single(deadline_s=deadline_s)

    from tightwire.transport.torch_distributed import join

    c10d: Any = dist
    if launch is None:
        store = dist.distributed_c10d._get_default_store()
        rank, size = dist.get_rank(), dist.get_world_size()
    else:
        store, rank, size = _rendezvous(launch, deadline_s), launch.rank, launch.size
    own = c10d.PrefixStore(f"tightwire/{next(_generations)}", store)
    transport = join(own, rank, size, deadline_s=deadline_s, host=os.environ.get("MASTER_ADDR"))
    if launch:
        dist.init_process_group(
            _backends(), store=store, rank=rank, world_size=size, timeout=timedelta(seconds=deadline_s)
        )
    return transport


def _rendezvous(launch: Launch, deadline_s: float) -> Any:
    """Returns the store where the workers meet: rank 0 listens unless the launcher does.

    Raises:
        TransportError: the port is taken, or the host has no address.
        PeerError: rank 0 does not listen.
    """
    import torch.distributed as dist

    c10d: Any = dist
    where = f"{launch.host}:{launch.port}"
    try:
        socket.getaddrinfo(launch.host, launch.port)
    except OSError as error:
        raise TransportError(f"asked to meet at {where}; that host has no address: {error}") from error
    listens = launch.rank == 0 and not launch.agent_hosts
    try:
        return c10d.TCPStore(
            launch.host,
            launch.port,
            launch.size,
            listens,
            timedelta(seconds=deadline_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        if listens:
            raise TransportError(
                f"asked to listen at {where} for the other workers; the port is taken or not ours: set "
                f"MASTER_PORT to a free one ({error})"
            ) from error
        raise PeerError(
            f"rank 0 does not listen at {where} after {deadline_s:g} s: it never started, died, or has "
            "another MASTER_ADDR or MASTER_PORT. Look at its log; raise deadline_s if it is only slow.",
            [0],
        ) from error


def _backends() -> str:
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
