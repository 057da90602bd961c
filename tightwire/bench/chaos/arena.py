"""Where trials run: workers forked from one process that has imported all, on this host's loopback or elsewhere."""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from tightwire.bench.chaos.faults import FAULTS
from tightwire.bench.chaos.slow import slow_loopback
from tightwire.bench.chaos.worker import (
    LIGHTHOUSE,
    STEPPED,
    STRUCK,
    WHERE,
    ChaosTrial,
    run_worker,
    serve_lighthouse,
)
from tightwire.errors import LabError

# Beyond the deadline a worker may take so long to say why it ends, and to end.
MORE_S: Final = 10.0
# For all workers to begin, and to make a step; a busy host takes long.
START_S: Final = 180.0
LOOK_S: Final = 0.01
# A worker that did not end has so long to write where it is, of which so many lines are told.
WRITE_S: Final = 0.5
MOST_PLACES: Final = 8
# Of what a worker wrote, so much is kept where a trial ended wrong.
MOST_LINES, MOST_COLUMNS = 80, 400
BALLAST: Final = "ballast"  # what the full disk is full of


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one worker ended.

    Attributes:
        code: exit code; negative is the signal that ended it, None: it was stopped by the arena at the limit.
        end: what it wrote of itself; empty if nothing.
        seconds: from the start of the trial.
        error: the last line of its standard error; where it was, if it did not end.
        log: the last lines of its standard error, each cut to a length.
    """

    code: int | None
    end: Mapping[str, Any]
    seconds: float
    error: str
    log: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trial ended.

    Attributes:
        workers: by rank.
        leftovers: processes and files that were still there.
        struck_s: when the victim was struck, by the monotonic clock; None: from the start, or never.
        has_attached: whether the victim had joined and attached its model before that or after.
    """

    workers: tuple[Ended, ...]
    leftovers: tuple[str, ...]
    struck_s: float | None = None
    has_attached: bool = True


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the workers of a trial are.

    Attributes:
        environment: returns all variables of a rank, given those that a launcher tells.
        enter: has the process of a rank enter the site.
        strike: does what the fault does from outside, once the victim says that it is struck.
    """

    environment: Callable[[int, Mapping[str, str]], Mapping[str, str]] = lambda rank, told: told
    enter: Callable[[int], None] = lambda rank: None
    strike: Callable[[], None] = lambda: None


LOOPBACK: Final = Site()


def run_trial(trial: ChaosTrial) -> Ending:
    """Runs the workers on this host's loopback; those of a large model on a slow one of their own."""
    if not trial.large:
        return run_forked(trial)
    with slow_loopback():
        return run_forked(trial)


def run_forked(trial: ChaosTrial, site: Site = LOOPBACK) -> Ending:
    """Forks the workers, strikes from outside where the fault asks for it, and waits until all have ended.

    Contract: the caller has imported torch and run nothing with it: a fork takes no threads along.
    """
    folder = pathlib.Path(
        tempfile.mkdtemp(prefix="tightwire-chaos-")
    )  # nothing that a fork would clean up at its end
    disk = folder / "disk" if trial.fault == "full-disk" else None
    processes, lighthouse = dict[int, int](), 0
    try:
        if disk is not None:
            _mount_full(disk)
        environment = environment_of(trial.workers)
        if trial.elastic:
            lighthouse = _fork(lambda: serve_lighthouse(trial, folder), folder, "lighthouse", {})
            environment |= {
                "TORCHFT_LIGHTHOUSE": _address(folder),
                "TIGHTWIRE_MIN_WORKERS": str(trial.min_workers),
            }

        def start(rank: int, trial: ChaosTrial = trial, **more: str) -> int:
            told = site.environment(rank, {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), **more})

            def work() -> int:
                site.enter(rank)
                return run_worker(trial, rank, folder)

            pid = _fork(work, folder, str(rank), told)
            processes[pid] = rank
            return pid

        for rank in range(trial.workers):
            start(rank)
        # Who comes back may train alone, where the others have ended meanwhile.
        again = functools.partial(start, trial.victim, replace(trial, victim=-1), TIGHTWIRE_MIN_WORKERS="1")
        codes = _watch(trial, processes, folder, again if trial.fault == "rejoin" else None, site.strike)
        leftovers = [path.name for path in folder.rglob("*") if path.suffix == ".part" or path.parent == disk]
        leftovers += [f"process group of rank {rank}" for pid, rank in processes.items() if _is_there(pid)]
        workers = [ended(folder, rank, *codes[rank]) for rank in range(trial.workers)]
        struck_s = struck_at(folder)
        has_attached = (folder / f"started{trial.victim}").exists()
    finally:
        for pid in (
            *processes,
            *filter(None, [lighthouse]),
        ):  # also where this campaign is interrupted, of which they hear nothing
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        if disk is not None and disk.is_mount():
            subprocess.run(["umount", "--lazy", str(disk)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    leftovers = [left for left in leftovers if left != BALLAST]
    return Ending(
        workers=tuple(workers), leftovers=tuple(leftovers), struck_s=struck_s, has_attached=has_attached
    )


def _mount_full(disk: pathlib.Path) -> None:
    """Mounts a small disk and fills it; where this process may not mount, an ordinary directory is left."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tightwire-chaos", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        (disk / BALLAST).write_bytes(bytes(16384))


def left_behind(folder: pathlib.Path, wait_s: float = 2.0) -> tuple[int, ...]:
    """Returns the processes that were started for a trial's folder and are there after a moment."""
    end_s = time.monotonic() + wait_s
    while True:
        commands = pathlib.Path("/proc").glob("[0-9]*/cmdline")
        left = tuple(int(path.parent.name) for path in commands if _names(path, folder))
        if not left or time.monotonic() > end_s:
            return left
        time.sleep(0.1)


def _names(path: pathlib.Path, folder: pathlib.Path) -> bool:
    try:
        return str(folder).encode() in path.read_bytes()
    except OSError:  # it has ended meanwhile
        return False


def struck_at(folder: pathlib.Path) -> float | None:
    """Returns when the victim wrote that it is struck."""
    path = folder / STRUCK
    return float(path.read_text(encoding="utf-8")) if path.exists() else None


def environment_of(workers: int) -> dict[str, str]:
    """Returns what a launcher tells all its workers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "TIGHTWIRE_SECRET": secrets.token_hex(16),
    }


def _address(folder: pathlib.Path) -> str:
    """Returns where the lighthouse is, once it listens."""
    ends_s = time.monotonic() + START_S
    while not (folder / LIGHTHOUSE).exists():
        if time.monotonic() > ends_s:
            raise LabError(
                f"no lighthouse began within {START_S:g} s: {(folder / 'errlighthouse').read_text()}"
            )
        time.sleep(LOOK_S)
    return str(json.loads((folder / LIGHTHOUSE).read_text(encoding="utf-8"))["address"])


def _fork(
    run: Callable[[], int | None], folder: pathlib.Path, name: str, environment: Mapping[str, str]
) -> int:
    """Starts a process in a group of its own, which ends as a program does; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with suppress(PermissionError, ProcessLookupError):  # whichever of the two comes first
            os.setpgid(pid, pid)
        return pid
    code: int | None = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{file}{name}", os.O_WRONLY | os.O_CREAT, 0o600), stream)
        os.environ |= environment
        code = run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException as error:
        traceback.print_exc()
        sys.last_value = error  # as the interpreter does, for whoever asks at exit
    finally:
        import atexit

        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code or 0)


def _watch(
    trial: ChaosTrial,
    processes: Mapping[int, int],
    folder: pathlib.Path,
    again: Callable[[], int] | None,
    strike: Callable[[], None],
) -> dict[int, tuple[int | None, float]]:
    """Returns exit code and time of each rank; continues, and at the end kills, those that are stopped.

    Args:
        trial: what is tried.
        processes: ranks by process.
        folder: of the trial.
        again: starts the victim anew, once it is killed; None: it stays away.
        strike: called once the victim says that it is struck.
    """
    fault = FAULTS.get(trial.fault)
    began_s = time.monotonic()
    alive, ended = dict(processes), dict[int, tuple[int | None, float]]()
    run_s = trial.steps * (trial.takes_s + 0.05) + MORE_S
    patience_s = 2.5 * trial.deadline_s + MORE_S
    limit_s = began_s + START_S
    started = [folder / f"started{rank}" for rank in processes.values()]
    continue_s: float | None = None
    is_struck = False
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        now = time.monotonic()
        if started and all(path.exists() for path in started):
            limit_s, started = max(limit_s, now + run_s + patience_s), []
        if not is_struck and (folder / STRUCK).exists():
            is_struck = True
            strike()
        if pid in alive and os.WIFSTOPPED(status):
            away_s = {"pause": 0.4, "thaw": 2.0}.get(trial.fault)
            continue_s = None if away_s is None else now + away_s * trial.deadline_s
        elif pid in alive and again is not None and os.WIFSIGNALED(status):
            rank = alive.pop(pid)
            alive[again()], again = rank, None
        elif pid in alive:
            ended[alive.pop(pid)] = os.waitstatus_to_exitcode(status), now - began_s
        elif continue_s is not None and now >= continue_s:
            continue_s = None
            _signal(processes, trial.victim, signal.SIGCONT)
        elif list(alive.values()) == [trial.victim] and fault is not None and not fault.victim_ends:
            _signal(processes, trial.victim, signal.SIGKILL)
        elif now > limit_s and (lives_s := _stepped_ago(folder)) < patience_s:
            # On a busy host a run takes long, and is no hang while it goes on.
            limit_s = now + patience_s - lives_s
        elif now > limit_s:
            for rank in alive.values():
                _signal(processes, rank, WHERE)
            time.sleep(WRITE_S)
            for rank in alive.values():
                _signal(processes, rank, signal.SIGKILL)
            for pid, rank in alive.items():
                os.waitpid(pid, 0)
                ended[rank] = None, now - began_s
            alive.clear()
        else:
            time.sleep(LOOK_S)
    return ended


def _stepped_ago(folder: pathlib.Path) -> float:
    """Returns the seconds since a worker of a trial made a step; without end if none has."""
    stepped_s = (path.stat().st_mtime for path in folder.glob(f"{STEPPED}*"))
    return time.time() - max(stepped_s, default=-math.inf)


def _signal(processes: Mapping[int, int], rank: int, number: int) -> None:
    for pid, who in processes.items():
        if who == rank:
            with suppress(ProcessLookupError):  # an earlier one, which was started anew
                os.kill(pid, number)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def ended(folder: pathlib.Path, rank: int, code: int | None, seconds: float) -> Ended:
    """Returns how a worker ended, by what it wrote of itself."""
    path, errors = folder / f"end{rank}.json", folder / f"err{rank}"
    end = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = errors.read_text(errors="replace").strip().splitlines() if errors.exists() else []
    error = lines[-1] if lines else ""
    if code is None:  # it was asked where it is
        error = ", ".join([line.split("/")[-1] for line in lines if line.startswith("  File ")][:MOST_PLACES])
    log = tuple(line[:MOST_COLUMNS] for line in lines[-MOST_LINES:])
    return Ended(code=code, end=end, seconds=seconds, error=error, log=log)
