"""What a launcher such as torchrun tells a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightwire.errors import TransportError


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
