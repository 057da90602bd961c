"""Where the workers of a lab live: the contract, and loopback as its simplest member."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from tightwire.errors import LabError
from tightwire.lab.topology import Topology, format_rate

Mode = Literal["root", "userns", "shaped"]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What passed a worker's link since the lab was built, counted by the kernel with all headers.

    Attributes:
        tx_bytes: sent by the worker.
        rx_bytes: received by the worker.
        dropped: packets that found a full queue at either end of the link.
    """

    tx_bytes: int
    rx_bytes: int
    dropped: int


def start_keeper(
    prefix: Sequence[str], networks: int, names: str = ""
) -> tuple[subprocess.Popen[str], list[int]]:
    """Starts the process that the hosts live in.

    Args:
        prefix: the command that makes its namespaces, before its own.
        networks: how many network namespaces it makes.
        names: lines for /etc/hosts in its namespaces.

    Returns:
        The process (or the one that waits for it), and its open files that hold the network namespaces.

    Raises:
        LabError: The namespaces cannot be made; with what the kernel said.
    """
    script = Path(__file__).with_name("keeper.py")
    process = subprocess.Popen(
        [*prefix, sys.executable, "-I", "-S", str(script), str(networks), names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C in the terminal is for the launcher alone
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    if not ready:
        _, error = process.communicate()
        raise LabError(error.strip().rpartition("\n")[2] or "the keeper of the namespaces died at once")
    return process, [int(file) for file in ready.split()]


def stop_keeper(keeper: subprocess.Popen[str]) -> None:
    """Ends the keeper, and with it every process and namespace it keeps."""
    keeper.communicate()


@final
class GroupGuard:
    """Ends the process groups of workers when the process that started them is gone, in whatever way.

    Attributes:
        orders: the open file by which it is told of groups; it does not end before the last of them has told.
    """

    def __init__(self) -> None:
        self._keeper, _ = start_keeper((), networks=0)
        assert self._keeper.stdin is not None
        self.orders = self._keeper.stdin.fileno()

    def guarded(self, argv: Sequence[str]) -> list[str]:
        """Returns a command, to be started with `orders` as its standard input, that first says what to kill.

        The command itself gets an empty input.
        """
        return ["sh", "-c", 'echo "+$$" >&0; exec "$@" </dev/null', "worker", *argv]

    def forget(self, group: int) -> None:
        """Tells that the number may belong to someone else from now on."""
        with suppress(BrokenPipeError):  # a guard that was killed remembers nothing
            os.write(self.orders, f"-{group}\n".encode())

    def close(self) -> None:
        """Ends it, and what it guards."""
        stop_keeper(self._keeper)


class Hosts(ABC):
    """One host per worker, and the network between them.

    Attributes:
        mode: how the hosts are made.
        interface: the name of a host's interface to the others.
        master_address: the address of worker 0.
        guard: of the process groups that run on the hosts.
    """

    mode: Mode
    interface: str
    master_address: str

    def __init__(self) -> None:
        """Starts the guard."""
        self.guard = GroupGuard()

    @abstractmethod
    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """The guarded command that runs `argv` on the worker's host, in the caller's working directory."""

    @abstractmethod
    def network(self, rank: int) -> AbstractContextManager[list[int]]:
        """An open file that holds the network of the worker's host while the block lasts; none where all share one."""

    def entrance(self, rank: int) -> AbstractContextManager[list[int]]:
        """Open files of what a process of this user's enters, one after the other, to be on the worker's host."""
        return self.network(rank)

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Variables that every worker on these hosts needs."""

    @abstractmethod
    def master_port(self) -> int:
        """A port that is free on worker 0's host, another one at every call."""

    @abstractmethod
    def worker_pid(self, process_pid: int) -> int:
        """The process of the worker itself, given the process that runs its `command`."""

    @abstractmethod
    def traffic(self) -> tuple[Traffic, ...]:
        """What passed each worker's link so far; empty where the kernel does not count per worker."""

    @abstractmethod
    def set_link(self, rank: int, up: bool) -> None:
        """Connects or cuts the worker's link."""

    @abstractmethod
    def deafen(self, rank: int) -> None:
        """Loses all that comes to the worker; what it sends arrives."""

    @abstractmethod
    def require_rate(self, rank: int) -> None:
        """Makes sure that a worker's link has a rate that can change.

        Raises:
            LabError: it has none.
        """

    @abstractmethod
    def set_rate(self, rank: int, rate_bytes_per_s: float) -> None:
        """Gives a worker's link another rate, in both directions; packets in its queues stay."""

    @abstractmethod
    def set_loss(self, rank: int, one_in: int) -> None:
        """Loses one in so many of the packets that come to the worker."""

    @abstractmethod
    def set_classes(self, classes: Mapping[int, int], equal: bool) -> None:
        """Sorts what workers send over the nodes' uplinks by their class: the least first, or all classes alike."""

    @abstractmethod
    def switch_command(self, argv: Sequence[str]) -> tuple[list[str], str]:
        """The command that runs `argv` in the switch of all hosts, and the address that hosts reach it by.

        Raises:
            LabError: There is no such place.
        """

    @abstractmethod
    def describe(self) -> str:
        """What the hosts are, and who shapes their links, in a phrase that follows "N workers, "."""

    @abstractmethod
    def close(self) -> None:
        """Ends every process on the hosts and gives everything back to the kernel."""


@final
class Loopback(Hosts):
    """All workers on this machine's loopback, their rate held by Tightwire's own shaped transport."""

    mode: Mode = "shaped"
    interface = "lo"
    master_address = "127.0.0.1"

    def __init__(self, topology: Topology) -> None:
        if topology.nodes is not None or topology.is_uneven:
            raise LabError(
                "the shaped mode has one rate for all workers, so it cannot emulate nodes or links that differ"
            )
        self._rate_bytes_per_s = topology.rate_bytes_per_s
        super().__init__()

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """The same, guarded."""
        return self.guard.guarded(argv)

    def network(self, rank: int) -> AbstractContextManager[list[int]]:
        """None: the loopback is everybody's."""
        return nullcontext([])

    def environment(self) -> dict[str, str]:
        """Tells `tw.init()` the rate to hold."""
        if self._rate_bytes_per_s is None:
            return {}
        return {"TIGHTWIRE_SHAPED_RATE_BYTES_PER_S": repr(self._rate_bytes_per_s)}

    def master_port(self) -> int:
        """Asks the kernel for a free port."""
        with socket.create_server((self.master_address, 0)) as free:
            port: int = free.getsockname()[1]
            return port

    def worker_pid(self, process_pid: int) -> int:
        """The same: nothing stands between."""
        return process_pid

    def traffic(self) -> tuple[Traffic, ...]:
        """Nothing: the loopback is shared with the whole machine."""
        return ()

    def require_rate(self, rank: int) -> None:
        """Refuses: workers were told their rate when they began."""
        raise LabError(
            "the rate cannot change in the mode shaped: workers hold it themselves, as they were told."
        )

    def set_rate(self, rank: int, rate_bytes_per_s: float) -> None:
        """Refuses likewise."""
        self.require_rate(rank)

    def set_loss(self, rank: int, one_in: int) -> None:
        """Loopback loses nothing."""
        raise LabError(
            "packets cannot be lost in the mode shaped: all workers share this machine's loopback."
        )

    def deafen(self, rank: int) -> None:
        """Loopback loses nothing."""
        self.set_loss(rank, 1)

    def set_classes(self, classes: Mapping[int, int], equal: bool) -> None:
        """Refuses: loopback has no uplinks."""
        raise LabError("the shaped mode has no uplinks at which jobs could be told apart")

    def set_link(self, rank: int, up: bool) -> None:
        """Refuses: there is no link."""
        raise LabError("a worker on loopback has no link to cut; that needs the mode root or userns.")

    def switch_command(self, argv: Sequence[str]) -> tuple[list[str], str]:
        """There is no switch."""
        raise LabError(
            "a switch that adds needs network namespaces of its own, and this machine allows none (mode shaped)."
        )

    def describe(self) -> str:
        """Says that only Tightwire's own transport is slow."""
        rate = format_rate(self._rate_bytes_per_s)
        return (
            f"all on loopback at {rate}, held in user space by tw.init() (mode shaped); "
            "stock DDP is not shaped, not compared"
        )

    def close(self) -> None:
        """Ends the guard, and what it guards."""
        self.guard.close()
