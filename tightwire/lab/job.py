"""A command running once per worker: output as it comes, one ending, no survivors."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Literal, final

from tightwire.lab.hosts import Hosts
from tightwire.lab.spare import Spare

KILL_AFTER_S = 2.0
# A process that is stopped, in /proc; and how long is waited for that.
STOPPED = "T"
STOP_S = 1.0
_DRAIN_S = 1.0
# Shells and supervisors may send a signal to a process and to its group: that is one wish, not two.
_SAME_INTERRUPT_S = 0.5
# What is due later than this is not waited for; a clock's type does not hold much more.
_NEVER_S = 1e9


@dataclass(frozen=True, kw_only=True)
class OutputLine:
    """One line of a worker's output, without its end."""

    rank: int
    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """How the workers of one command ended.

    Attributes:
        exit_codes: per rank; negative: ended by that signal, as in `subprocess`.
        first_failed: the rank whose failure came first, before the lab ended the others; None: none failed.
        timed_out: the workers were ended because the time was over.
        wall_s: from the first worker's start to the last one's end, in seconds.
        last_line: that the first failing worker wrote to its standard error; empty where there is none.
    """

    exit_codes: tuple[int, ...]
    first_failed: int | None
    timed_out: bool
    wall_s: float
    last_line: str = ""

    @property
    def ok(self) -> bool:
        """Whether every worker ended by itself, with 0."""
        return not any(self.exit_codes) and not self.timed_out

    @property
    def exit_code(self) -> int:
        """One code for all, as a shell gives it: the first failing worker's; 124 when the time was over.

        After an interrupt that did not end this process, that of the first rank that it ended.
        """
        if self.first_failed is None and self.timed_out:
            return 124
        failed = self.exit_codes if self.first_failed is None else [self.exit_codes[self.first_failed]]
        code = next(filter(None, failed), 0)
        return code if code >= 0 else 128 - code

    def describe(self) -> str:
        """One sentence about the ending."""
        if self.first_failed is not None:
            ending = describe_exit(self.exit_codes[self.first_failed])
            line = f" It wrote last: {self.last_line}" if self.last_line else ""
            return f"rank {self.first_failed} failed first, {ending}.{line}"
        ending = "ended well" if self.ok else "were interrupted"
        ending = "did not end in time and were stopped" if self.timed_out else ending
        return f"{len(self.exit_codes)} workers {ending} after {self.wall_s:.1f} s."


def describe_exit(code: int) -> str:
    """Says what an exit code means: `with exit code 3`, `killed by SIGSEGV`."""
    if code >= 0:
        return f"with exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


@dataclass(frozen=True)
class _Exit:
    rank: int
    code: int


@dataclass(frozen=True)
class _StreamEnd:
    pass


@dataclass(frozen=True)
class _Interrupt:
    signum: int


_Event = OutputLine | _Exit | _StreamEnd | _Interrupt


def _start_thread(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


@final
class LabJob:
    """The running workers of one command.

    Threads turn output and endings into events; everything is decided by the thread that calls `wait`.

    Args:
        hosts: where the workers run.
        commands: what each rank runs.
        environments: all of each rank's environment variables.
        grace_s: how long the others may go on, in seconds, after one failed or after an interrupt.
        restarts: whether a worker that a signal ended is started anew, and has not failed.
        spare: starts a process that will be the next worker started anew; None where that is not possible.
    """

    def __init__(
        self,
        hosts: Hosts,
        commands: Sequence[Sequence[str]],
        environments: Sequence[Mapping[str, str]],
        grace_s: float,
        restarts: bool = False,
        spare: Callable[[], Spare | None] = lambda: None,
    ) -> None:
        self._hosts = hosts
        self._make_spare = spare
        self._spare: Spare | None = None
        self._restarts, self._commands, self._environments = restarts, commands, environments
        self._grace_s = grace_s
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._exit_codes: dict[int, int] = {}
        self._last_lines: dict[int, str] = {}
        self._first_failed: int | None = None
        self._timed_out = False
        self._interrupted: int | None = None
        self._interrupted_s = 0.0
        self._open_streams = 0
        self._escalation: deque[tuple[float, int]] = deque()
        self._watchers: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._start_s = time.monotonic()
        try:
            for rank in range(len(commands)):
                self._start(rank)
            self._spare = self._make_spare()
        except BaseException:
            self.stop()
            raise

    def wait(self, on_line: Callable[[OutputLine], None], timeout_s: float | None = None) -> Result:
        """Waits until every worker has ended, and hands over their output line by line.

        *Contract*: blocks; `on_line` is called on this thread, each worker's lines of one stream in order.
        When a worker fails, the others get the grace, then SIGTERM, then SIGKILL. In the main thread,
        SIGINT and SIGTERM are passed on to the workers, and take their usual effect here after their end.

        Args:
            on_line: receives the output; what it raises ends the workers at once.
            timeout_s: after this many seconds the workers are stopped; None: never.

        Returns:
            How they ended.
        """
        if timeout_s is not None:
            self._escalation.append((self._start_s + timeout_s, 0))
        try:
            with self._interrupts_as_events():
                while len(self._exit_codes) < len(self._processes):
                    self._step(on_line)
                self._drain(on_line)
        finally:
            self.stop()
        if self._interrupted is not None:
            signal.raise_signal(self._interrupted)
        return self._result(time.monotonic() - self._start_s)

    def signal(self, rank: int, signum: int) -> None:
        """Sends a signal to one worker, which may have ended already.

        SIGSTOP, SIGCONT and SIGKILL reach all that the worker started; others the worker alone, as with
        `torchrun`.
        """
        process = self._processes[rank]
        if process.returncode is not None:
            return
        if signum == signal.SIGCONT:  # the worker first; `_go_on` says why
            with suppress(ProcessLookupError):
                os.kill(self._hosts.worker_pid(process.pid), signum)
        with suppress(ProcessLookupError):
            if signum in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
                os.killpg(process.pid, signum)
            else:
                os.kill(self._hosts.worker_pid(process.pid), signum)
            if signum == signal.SIGSTOP:
                _hold(process.pid, self._hosts.worker_pid(process.pid))

    def restart_no_more(self) -> None:
        """Takes a worker that a signal ends from now on as one that has ended."""
        self._restarts = False

    def stop(self) -> None:
        """Kills whatever still runs and waits for its end."""
        for rank in self._processes:
            self.signal(rank, signal.SIGKILL)
        for watcher in self._watchers:
            watcher.join()
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _start_anew(self, rank: int) -> None:
        """Starts a worker in the place of one that was killed: from the spare, if that is ready."""
        spare = self._spare
        if spare is not None and spare.is_ready and spare.order(rank, self._environments[rank]):
            self._processes[rank] = spare.process
            self._watch(rank, spare.process)
            self._spare = self._make_spare()
        else:
            self._start(rank)

    def _start(self, rank: int) -> None:
        process = subprocess.Popen(
            self._commands[rank],
            env=self._environments[rank],
            stdin=self._hosts.guard.orders,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # Ctrl-C in the terminal reaches the workers once, through the launcher
        )
        self._processes[rank] = process
        self._watch(rank, process)

    def _watch(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._open_streams += 2
        _start_thread(self._read, rank, "stdout", process.stdout)
        _start_thread(self._read, rank, "stderr", process.stderr)
        self._watchers.append(_start_thread(self._watch_exit, rank, process))

    def _watch_exit(self, rank: int, process: subprocess.Popen[str]) -> None:
        while (seen := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)) is not None:
            if seen.si_code != os.CLD_STOPPED:
                break
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG)
            self._go_on(process.pid)
        # While the worker is not reaped, the number of its group cannot belong to anyone else.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._hosts.guard.forget(process.pid)
        self._events.put(_Exit(rank, process.wait()))

    def _go_on(self, starter: int) -> None:
        """Lets the process that started a worker go on unless the worker itself is stopped.

        `nsenter` stops itself when it sees its child stopped, at times only after both were told to go on; then it
        would never tell of the worker's end.
        """
        with suppress(ProcessLookupError):
            worker = self._hosts.worker_pid(starter)
            if worker != starter and _state(worker) != STOPPED:  # a worker may be frozen again just now
                os.kill(starter, signal.SIGCONT)

    def _read(self, rank: int, stream: Literal["stdout", "stderr"], pipe: IO[str]) -> None:
        with pipe:
            for text in pipe:
                self._events.put(OutputLine(rank=rank, stream=stream, text=text.rstrip("\n")))
        self._events.put(_StreamEnd())

    def _step(self, on_line: Callable[[OutputLine], None]) -> None:
        until_s = self._escalation[0][0] - time.monotonic() if self._escalation else math.inf
        try:
            self._handle(self._events.get(timeout=None if until_s > _NEVER_S else max(until_s, 0)), on_line)
        except Empty:
            self._escalate(self._escalation.popleft()[1])

    def _handle(self, event: _Event, on_line: Callable[[OutputLine], None]) -> None:
        match event:
            case OutputLine():
                if event.stream == "stderr" and event.text.strip():
                    self._last_lines[event.rank] = event.text.strip()
                on_line(event)
            case _Exit(rank, code) if code < 0 and self._restarts and not self._is_ending:
                self._start_anew(rank)
            case _Exit(rank, code):
                self._exit_codes[rank] = code
                if code and self._first_failed is None and self._interrupted is None and not self._timed_out:
                    self._first_failed = rank
                    self._end_after(self._grace_s)
            case _StreamEnd():
                self._open_streams -= 1
            case _Interrupt(signum):
                self._interrupt(signum)

    @property
    def _is_ending(self) -> bool:
        return self._first_failed is not None or self._interrupted is not None or self._timed_out

    def _interrupt(self, signum: int) -> None:
        now_s = time.monotonic()
        if self._interrupted is None:
            self._interrupted = signum
            self._interrupted_s = now_s
            self._broadcast(signum)
            self._end_after(self._grace_s)
        elif now_s > self._interrupted_s + _SAME_INTERRUPT_S:
            self._broadcast(signal.SIGKILL)

    def _escalate(self, signum: int) -> None:
        if signum:
            self._broadcast(signum)
        else:
            self._timed_out = True
            self._end_after(0)

    def _end_after(self, delay_s: float) -> None:
        term_s = time.monotonic() + delay_s
        self._escalation = deque([(term_s, signal.SIGTERM), (term_s + KILL_AFTER_S, signal.SIGKILL)])

    def _broadcast(self, signum: int) -> None:
        for rank in self._processes:
            self.signal(rank, signum)

    def _drain(self, on_line: Callable[[OutputLine], None]) -> None:
        """Takes the output that came before the ends."""
        # A daemon that left its worker's group may hold a stream open, so this has an end.
        deadline_s = time.monotonic() + _DRAIN_S
        with suppress(Empty):
            while self._open_streams:
                self._handle(self._events.get(timeout=max(deadline_s - time.monotonic(), 0)), on_line)

    @contextmanager
    def _interrupts_as_events(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: FrameType | None) -> None:
            self._events.put(_Interrupt(signum))

        wanted = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
        previous = {signum: signal.signal(signum, note) for signum in wanted}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _result(self, wall_s: float) -> Result:
        codes = tuple(self._exit_codes[rank] for rank in range(len(self._processes)))
        return Result(
            exit_codes=codes,
            first_failed=self._first_failed,
            timed_out=self._timed_out,
            wall_s=wall_s,
            last_line="" if self._first_failed is None else self._last_lines.get(self._first_failed, ""),
        )


def stands_still(pid: int) -> bool:
    """Whether a process has stopped or ended, or waits for a child that has stopped before it ran its program."""
    state = _state(pid)
    if state == "D":  # as in `vfork`
        return any(_state(int(child)) == STOPPED for child in _told(pid, f"task/{pid}/children").split())
    return state in (STOPPED, "Z", "")


def _state(pid: int) -> str:
    """Returns a process's state, a letter, as /proc tells it; "" if there is no such process."""
    return _told(pid, "stat").rpartition(")")[2].strip()[:1]


def _told(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _hold(group: int, worker: int) -> None:
    """Waits until a group that was told to stop has.

    A child that is being forked meanwhile is stopped along with its parent; Linux would lose for it a SIGCONT that came
    before it is there. And `nsenter`, which has just been told to go on itself, may tell the worker so only now.
    """
    ends_s = time.monotonic() + STOP_S
    while not stands_still(worker) and time.monotonic() < ends_s:
        time.sleep(0.001)
        os.killpg(group, signal.SIGSTOP)
