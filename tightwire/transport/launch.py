"""What a launcher tells a worker: torchrun, or in its place SLURM's srun or an MPI's mpirun."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tightwire.errors import TransportError

NAMES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Starter:
    """How one launcher names what a worker must know, where it sets none of torchrun's variables.

    Attributes:
        name: of its command.
        rank: the variable with this worker's rank.
        size: with the number of workers.
        local_rank: with the rank on its host; "" if there is none.
        local_size: with the number of workers on its host; "" if there is none.
        passes: how its command line gives variables to the workers.
    """

    name: str
    rank: str
    size: str
    local_rank: str = ""
    local_size: str = ""
    passes: str


# srun sets the STEP's variables; a batch script that runs outside srun has a SLURM_PROCID and is one process.
STARTERS: Final = (
    Starter(
        name="srun",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_size="SLURM_STEP_TASKS_PER_NODE",
        passes="export MASTER_ADDR=HOST MASTER_PORT=29500 before srun",
    ),
    Starter(
        name="mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        passes="mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500",
    ),
    Starter(
        name="mpirun",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_size="MV2_COMM_WORLD_LOCAL_SIZE",
        passes="mpirun -env MASTER_ADDR HOST -env MASTER_PORT 29500",
    ),
    Starter(
        name="mpiexec",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
        passes="mpiexec -env MASTER_ADDR HOST -env MASTER_PORT 29500",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher tells a worker.

    Attributes:
        rank: this worker.
        size: number of workers.
        host: where they meet.
        port: its TCP port there.
        agent_hosts: the launcher itself listens on that port; else rank 0 does.
        attempt: how often the launcher has started the workers anew.
    """

    rank: int
    size: int
    host: str
    port: int
    agent_hosts: bool
    attempt: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Launch | None:
        """Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or what SLURM or MPI set; None where no launcher did.

        Raises:
            TransportError: some are set and others not, or one is not a number.
        """
        told = {name: environment[name] for name in NAMES if environment.get(name)}
        starter = starter_of(environment)
        if starter is not None and not {"RANK", "WORLD_SIZE"} & set(told):
            told |= {"RANK": environment[starter.rank], "WORLD_SIZE": environment[starter.size]}
            told = _meeting_place(environment) | told
            if missing := [name for name in NAMES if name not in told]:
                raise TransportError(
                    f"{starter.name} started {told['WORLD_SIZE']} workers ({starter.size}), which cannot meet: "
                    f"{' and '.join(missing)} are not set. Write {starter.passes}, HOST being rank 0's, or start with "
                    "torchrun."
                )
        missing = [name for name in NAMES if name not in told]
        if {"RANK", "WORLD_SIZE"} <= set(missing):
            return None
        if missing:
            raise TransportError(
                f"the launcher set some of {', '.join(NAMES)} but not {', '.join(missing)}: use torchrun, or "
                "set all four, or none for a world of one"
            )
        try:
            rank, size, port = (int(told[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        except ValueError as error:
            raise TransportError(f"RANK, WORLD_SIZE and MASTER_PORT must be whole numbers: {error}") from None
        if not 0 <= rank < size:
            raise TransportError(f"RANK is {rank} in a world of {size}: it must be from 0 to {size - 1}")
        if not (0 < port < 1 << 16 or (port == 0 and size == 1)):  # who is alone may listen anywhere
            raise TransportError(
                f"MASTER_PORT is {port}: it must be a port from 1 to 65535, the same on all workers"
            )
        return cls(
            rank=rank,
            size=size,
            host=told["MASTER_ADDR"],
            port=port,
            agent_hosts=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=attempt_of(environment),
        )


def attempt_of(environment: Mapping[str, str]) -> int:
    """Returns how often torchrun has started the workers anew."""
    told = environment.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(told) if told.isdigit() else 0


def starter_of(environment: Mapping[str, str]) -> Starter | None:
    """Returns the launcher, other than torchrun, that started this process as one of several; None if none did."""
    for starter in STARTERS:
        size = environment.get(starter.size, "")
        if starter.rank in environment and size.isdigit() and int(size) > 1:
            return starter
    return None


def told_rank(environment: Mapping[str, str]) -> int:
    """Returns this worker's number among all, as the launcher says; 0 where it does not."""
    return _told(environment, "RANK", "rank")


def local_rank(environment: Mapping[str, str]) -> int:
    """Returns this worker's number on its host, as the launcher says; 0 where it does not."""
    return _told(environment, "LOCAL_RANK", "local_rank")


def local_size(environment: Mapping[str, str]) -> int:
    """Returns the number of workers on this worker's host, as the launcher says; 0 where it does not."""
    return _told(environment, "LOCAL_WORLD_SIZE", "local_size")


def _told(environment: Mapping[str, str], name: str, attribute: str) -> int:
    told = environment.get(name, "")
    starter = starter_of(environment)
    if not told and starter is not None:
        told = environment.get(getattr(starter, attribute), "")
        if repeated := re.fullmatch(r"([0-9]+)\(x[0-9]+\)", told):  # SLURM: the same on each of several nodes
            told = repeated[1]
    return int(told) if told.isdigit() else 0


def _meeting_place(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns where workers may meet under SLURM: on the step's first node, at a port made of the job's number."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    job = environment.get("SLURM_JOB_ID", "")
    if not (nodes and job.isdigit() and "SLURM_STEP_NUM_TASKS" in environment):
        return {}
    return {"MASTER_ADDR": first_node(nodes), "MASTER_PORT": str(20_000 + int(job) % 10_000)}


def first_node(nodes: str) -> str:
    """Returns the first host of a list as SLURM writes it.

    >>> first_node("node[007-010,12],gpu3"), first_node("a1,a2"), first_node("rack1-[3,5]-ib")
    ('node007', 'a1', 'rack1-3-ib')
    """
    first = re.match(r"([^,\[]*)(?:\[([0-9]+)[^\]]*\])?([^,\[]*)", nodes)
    assert first is not None
    return "".join(part or "" for part in first.groups())
