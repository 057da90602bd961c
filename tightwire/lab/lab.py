"""The lab itself: build the hosts, run commands on them, break them on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, final, get_args

from tightwire.errors import LabError
from tightwire.lab.hosts import Hosts, Loopback, Mode, Traffic
from tightwire.lab.job import LabJob, OutputLine, Result
from tightwire.lab.namespaces import Namespaces
from tightwire.lab.slow import VARIABLE, Brake, Slow
from tightwire.lab.spare import MODULES, Spare, can_be_warm
from tightwire.lab.switch import AddingSwitch, SwitchProcess
from tightwire.lab.topology import Topology, checked_rate


def print_line(line: OutputLine) -> None:
    """Prints a worker's line, to the stream that it came from, with its rank in front."""
    print(
        f"[{line.rank}] {line.text}", file=sys.stderr if line.stream == "stderr" else sys.stdout, flush=True
    )


@final
class Lab:
    """A cluster emulated on this machine for as long as the `with` block lasts.

    The hosts stay between commands; the processes of a command do not.

    Args:
        topology: the workers and their links.
        mode: `root` (network namespaces made directly), `userns` (inside a user namespace), `shaped` (all on
            loopback, rates held by Tightwire's own transport), or `auto`: the first of these that works.
        batch_scheduling: run the workers under SCHED_BATCH, so that idle workers wake up as if each had a
            processor of its own. For measuring messages; with real compute the default is better.
        grace_s: how long the others may go on, in seconds, after one worker failed.
        slow: workers that take longer than the others.
        switch: memory with which the switch adds for the workers; None: it does not.
        keeps_windows: whether TCP goes on after a pause with the window that it had, as on hosts that are set up for
            training (`net.ipv4.tcp_slow_start_after_idle=0`); by default it starts anew, as Linux does.

    Raises:
        LabError: The mode is unknown, or (when the block is entered) not possible here; with the reason.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        mode: Mode | Literal["auto"] = "auto",
        batch_scheduling: bool = False,
        grace_s: float = 5.0,
        slow: Sequence[Slow] = (),
        switch: AddingSwitch | None = None,
        keeps_windows: bool = False,
    ) -> None:
        if mode not in ("auto", *get_args(Mode)):
            raise LabError(f"mode {mode!r} is unknown. Known: auto, {', '.join(get_args(Mode))}.")
        if not grace_s >= 0:
            raise LabError(f"grace_s is {grace_s:g}; the others may go on for 0 seconds or more.")
        self.topology = topology
        self._wanted = mode
        self._batch_scheduling = batch_scheduling
        self._grace_s = grace_s
        self._keeps_windows = keeps_windows
        self._slow = tuple(slow)
        if strangers := [one for one in slow if one.rank >= topology.workers]:
            raise LabError(f"--slow {strangers[0]}: this lab has ranks 0 to {topology.workers - 1}.")
        self._switch = switch
        self._adder: SwitchProcess | None = None
        self._hosts: Hosts | None = None
        self._job: LabJob | None = None
        self._why_not: list[str] = []

    def __enter__(self) -> Self:
        self._hosts = self._open_first() if self._wanted == "auto" else self._open_wanted(self._wanted)
        if self._switch is not None:
            try:
                self._adder = SwitchProcess(self._switch, self._hosts)
            except BaseException:
                self._hosts.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._job is not None:
            self._job.stop()
        self.kill_switch()
        if self._hosts is not None:
            self._hosts.close()
        self._hosts = None

    @property
    def mode(self) -> Mode:
        """How the hosts are made."""
        return self._open.mode

    @property
    def shapes_everything(self) -> bool:
        """Whether the kernel shapes all that workers send; if not, only Tightwire's own transport is slow."""
        return self.mode != "shaped"

    def describe(self) -> str:
        """What this lab is, what was not possible and why, in a sentence or two."""
        scheduling = ", under SCHED_BATCH" if self._batch_scheduling else ""
        scheduling += "".join(f", rank {one.rank} slowed ({one})" for one in self._slow)
        scheduling += f", a switch that {self._switch}" if self._switch else ""
        reasons = f" Not possible here: {'; '.join(self._why_not)}." if self._why_not else ""
        return f"{self.topology.workers} workers, {self._open.describe()}{scheduling}.{reasons}"

    def run(
        self,
        argv: Sequence[str],
        *,
        on_line: Callable[[OutputLine], None] = print_line,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        elastic: bool = False,
        rates_at: Sequence[tuple[float, float]] = (),
        warm: Sequence[str] = MODULES,
        dead_ms: int | None = None,
    ) -> Result:
        """Runs a command once per worker, with the environment that `torchrun` would give it.

        *Contract*: blocks until all have ended and leaves no process; one command at a time. When a
        worker fails, the others get the grace, then SIGTERM, then SIGKILL. In the main thread, SIGINT and
        SIGTERM are passed on to the workers first, and then take their usual effect here.

        Args:
            argv: the command, for example `[sys.executable, "train.py"]`.
            on_line: receives the workers' output; by default it is printed with the rank in front.
            env: variables for the workers, over those of this process and of the lab.
            timeout_s: after this many seconds the workers are stopped; None: never.
            elastic: a worker that is killed is started anew; beside worker 0, on its host, is a lighthouse, by which it
                comes in among the others (`tightwire.init(elastic=True)`). A Python program is started anew from a
                spare process that has imported `warm` already; see `lab.spare`.
            rates_at: seconds from the start, and the rate in bytes per second that links have from then on.
            warm: modules that workers import.
            dead_ms: so long the lighthouse hears nothing from a worker until it is dead; None: as it is by default.

        Returns:
            How the workers ended.

        Raises:
            LabError: The command does not exist, another one is running, a time is none, or rates cannot change here.
        """
        hosts = self._open
        if self._job is not None:
            raise LabError("this lab runs a command already; wait for its end, or build a second lab.")
        if timeout_s is not None and not timeout_s > 0:
            raise LabError(
                f"workers cannot be stopped after {timeout_s:g} seconds; write a timeout above 0, or none."
            )
        program = _found(argv)
        batch = [_found(["chrt"])[0], "--batch", "0"] if self._batch_scheduling else []
        meeting = {"MASTER_PORT": str(hosts.master_port()), "TIGHTWIRE_SECRET": secrets.token_hex(16)}
        ranks = range(self.topology.workers)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._changing(rates_at))
            if elastic:
                meeting |= stack.enter_context(self._lighthouse(dead_ms))
            environments = [self.environment(rank, {**meeting, **(env or {})}) for rank in ranks]

            def spare() -> Spare | None:
                if not elastic or not can_be_warm(program):
                    return None
                return Spare(hosts, program, environments[0], start=batch, modules=warm)

            self._job = LabJob(
                hosts,
                [hosts.command(rank, [*batch, *program]) for rank in ranks],
                environments,
                self._grace_s,
                restarts=elastic,
                spare=spare,
            )
            brake = Brake(self._slow, self.freeze, self.thaw)
            try:
                return self._job.wait(on_line, timeout_s)
            finally:
                brake.release()
                self._job = None

    @contextlib.contextmanager
    def entrance(self, rank: int) -> Iterator[list[int]]:
        """Opens what a process enters, one after the other (`keeper.enter`), to be on a worker's host."""
        with self._open.entrance(self._existing(rank)) as files:
            yield files

    def environment(self, rank: int, extra: Mapping[str, str]) -> dict[str, str]:
        """Returns all variables of a worker: this process's, the lab's, and more."""
        hosts = self._open
        defaults = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        interface = {f"{backend}_SOCKET_IFNAME": hosts.interface for backend in ("GLOO", "NCCL", "TP")}
        master = {"MASTER_ADDR": hosts.master_address}
        about = {"TIGHTWIRE_LAB": self._about()}
        place = self.topology.environment(rank)
        told = [str(one) for one in self._slow if one.rank == rank and one.emulated]
        switch = {"TIGHTWIRE_SWITCH": str(self._adder.address)} if self._adder else {}
        slow = {VARIABLE: told[-1]} if told else {}
        return {
            **defaults,
            **os.environ,
            **interface,
            **master,
            **place,
            **hosts.environment(),
            **about,
            **slow,
            **switch,
            **extra,
        }

    @contextlib.contextmanager
    def _changing(self, rates_at: Sequence[tuple[float, float]]) -> Iterator[None]:
        """Changes the rate at the times given, while the block lasts; at once refuses what would fail by then."""
        for at_s, rate in rates_at:
            if not 0 <= at_s <= threading.TIMEOUT_MAX:
                raise LabError(f"a rate cannot change after {at_s:g} seconds; write 0 or more.")
            checked_rate(rate, "the rate")
            for rank in range(self.topology.workers):
                self._open.require_rate(rank)
        changes = [threading.Timer(at_s, self.set_rate, (rate,)) for at_s, rate in rates_at]
        for change in changes:
            change.daemon = True
            change.start()
        try:
            yield
        finally:
            for change in changes:
                change.cancel()
                change.join()  # one that is under way needs the links

    @contextlib.contextmanager
    def _lighthouse(self, dead_ms: int | None) -> Iterator[dict[str, str]]:
        """Runs a lighthouse on worker 0's host; what workers are told of it.

        Raises:
            LabError: torchft is not installed.
        """
        hosts = self._open
        port = hosts.master_port()
        argv = [sys.executable, "-m", "tightwire.transport.lighthouse"]
        argv += [] if dead_ms is None else ["--dead-ms", str(dead_ms)]
        process = subprocess.Popen(
            hosts.command(0, [*argv, "--host", hosts.master_address, "--port", str(port)]),
            env=self.environment(0, {}),
            stdin=hosts.guard.orders,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                _, error = process.communicate()
                raise LabError(f"there is no lighthouse: {error.strip().rpartition(chr(10))[2]}")
            yield {
                "TORCHFT_LIGHTHOUSE": f"http://{hosts.master_address}:{port}",
                "TIGHTWIRE_MIN_WORKERS": str(self.topology.workers),
            }
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            hosts.guard.forget(process.pid)

    def traffic(self) -> tuple[Traffic, ...]:
        """What passed each worker's link since the lab was built; empty in the mode `shaped`."""
        return self._open.traffic()

    def kill(self, rank: int) -> None:
        """Kills a worker of the running command at once (SIGKILL); from `on_line` or from another thread."""
        self._signal(rank, signal.SIGKILL)

    def kill_switch(self) -> None:
        """Kills what adds in the switch, if it does; packets go on as before."""
        if self._adder is not None:
            self._adder.stop()
            self._adder = None

    def restart_no_more(self) -> None:
        """Starts no worker of the running command anew from now on, as when an elastic job is over."""
        if (job := self._job) is not None:  # which may end just now
            job.restart_no_more()

    def freeze(self, rank: int) -> None:
        """Stops a worker of the running command where it is (SIGSTOP); its connections stay open."""
        self._signal(rank, signal.SIGSTOP)

    def thaw(self, rank: int) -> None:
        """Lets a frozen worker go on."""
        self._signal(rank, signal.SIGCONT)

    def cut(self, rank: int) -> None:
        """Takes a worker's link down; what is sent to it vanishes.

        Raises:
            LabError: The mode is `shaped`, where a worker has no link.
        """
        self._open.set_link(self._existing(rank), up=False)

    def deafen(self, rank: int) -> None:
        """Makes a link half-open, for good: what is sent to the worker vanishes, what it sends arrives.

        Raises:
            LabError: The mode is `shaped`, where a worker has no link.
        """
        self._open.deafen(self._existing(rank))

    def set_rate(self, rate_bytes_per_s: float, rank: int | None = None) -> None:
        """Gives one worker's own link, or everybody's, another rate from now on, also while a command runs.

        Raises:
            LabError: a rate that no link has, links without one, or the mode is `shaped`.
        """
        checked_rate(rate_bytes_per_s, "the rate")
        for one in range(self.topology.workers) if rank is None else [self._existing(rank)]:
            self._open.set_rate(one, rate_bytes_per_s)

    def lose(self, rank: int, one_in: int) -> None:
        """Loses one in so many of the packets that come to a worker; a power of two.

        Raises:
            LabError: another number, or the mode is `shaped`.
        """
        self._open.set_loss(self._existing(rank), one_in)

    def set_classes(self, classes: Mapping[int, int], *, equal: bool) -> None:
        """Sorts what workers send by class at the nodes' uplinks, each class with a queue of its own.

        Args:
            classes: of each worker.
            equal: whether all classes have the same share of the line where they meet; else the least number goes
                first, and the next has what is left.

        Raises:
            LabError: no nodes with uplinks of one rate.
        """
        self._open.set_classes({self._existing(rank): number for rank, number in classes.items()}, equal)

    def mend(self, rank: int) -> None:
        """Puts a worker's link up again."""
        self._open.set_link(self._existing(rank), up=True)

    @property
    def _open(self) -> Hosts:
        if self._hosts is None:
            raise LabError("the lab is not open; use it inside `with Lab(...) as lab:`.")
        return self._hosts

    def _open_wanted(self, mode: Mode) -> Hosts:
        try:
            return _build(mode, self.topology, self._keeps_windows)
        except LabError as error:
            raise LabError(
                f"mode {mode!r} is not possible here: {error}. Mode auto takes one that is."
            ) from error

    def _open_first(self) -> Hosts:
        for mode in get_args(Mode):
            try:
                return _build(mode, self.topology, self._keeps_windows)
            except LabError as error:
                self._why_not.append(f"{mode} ({error})")
        raise LabError(
            f"{self.topology.workers} workers ({self.topology}) cannot be emulated here: "
            f"{'; '.join(self._why_not)}."
        )

    def _signal(self, rank: int, signum: int) -> None:
        if (job := self._job) is None:  # which may end just now
            raise LabError(f"rank {rank} does not run: the lab runs no command now.")
        job.signal(self._existing(rank), signum)

    def _existing(self, rank: int) -> int:
        if rank in range(self.topology.workers):
            return rank
        raise LabError(f"there is no rank {rank}; this lab has ranks 0 to {self.topology.workers - 1}.")

    def _about(self) -> str:
        return json.dumps(
            {
                "mode": self.mode,
                "workers": self.topology.workers,
                "rate_bytes_per_s": self.topology.rate_bytes_per_s,
                "topology": str(self.topology),
                "interface": self._open.interface,
                "scheduling": "batch" if self._batch_scheduling else "default",
            }
        )


def _build(mode: Mode, topology: Topology, keeps_windows: bool) -> Hosts:
    return Loopback(topology) if mode == "shaped" else Namespaces(topology, mode, keeps_windows)


def _found(argv: Sequence[str]) -> list[str]:
    if not argv:
        raise LabError("there is no command to run. Write for example: -- python train.py")
    program = shutil.which(argv[0])
    if program is None:
        hint = f"Write: python {argv[0]}" if argv[0].endswith(".py") else "Is it installed, and in PATH?"
        raise LabError(f"the command {argv[0]!r} cannot be run here: no such program. {hint}")
    return [program, *argv[1:]]
