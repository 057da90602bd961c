"""One worker of a trial: trains a small model, and does what the fault says where it is the victim."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import os
import pathlib
import resource
import signal
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from typing import Any, Final

# What the victim prints when its launcher is to be killed.
STRIKE_ME: Final = "now"
LARGE: Final = 12_000  # hidden units of a model of 1.15 MB
DEADLINE_S: Final = 4.0  # of the transport, unless another is asked for
LOOKS: Final = 2  # steps after which a search for a plan has begun
LOOPS: Final = ("plain", "scheduled", "accumulates")  # how a trial's workers train
STRUCK: Final = "struck"  # written by the victim as it is struck: when
STEPPED: Final = "stepped"  # and the rank: touched at every step
WHERE: Final = signal.SIGUSR1  # asks a worker where it is
REACHED: Final = "reached"  # written once rank 0 has come to the step at which a server is struck
LIGHTHOUSE: Final = "lighthouse.json"  # its process and its address
SIGNALS: Final = {
    "kill": signal.SIGKILL,
    "kill-host": signal.SIGKILL,
    "kill-server": signal.SIGKILL,
    "freeze": signal.SIGSTOP,
    "freeze-server": signal.SIGSTOP,
    "pause": signal.SIGSTOP,
    "thaw": signal.SIGSTOP,
    "rejoin": signal.SIGKILL,
}


@dataclass(frozen=True, kw_only=True)
class ChaosTrial:
    """One run with one fault.

    Attributes:
        plan: of all.
        fault: its name.
        victim: the rank that it strikes.
        at_step: when; −1: never.
        moment: part of the way to the next step, from 0 to 1, for what strikes from outside.
        workers: how many.
        steps: that each makes.
        step_s: how long a step takes, at least.
        deadline_s: of the transport.
        late_s: of the transport.
        elastic: whether the job is.
        logs: whether every step also sums the loss by torch.distributed, as scripts and trainers do.
        large: whether messages take most of a step: faults fall into the middle of one.
        loop: `plain`; `scheduled`, whose rate changes with every step; or `accumulates`, two passes for each step.
    """

    plan: str
    fault: str
    victim: int
    at_step: int
    moment: float
    workers: int
    steps: int
    step_s: float
    deadline_s: float
    late_s: float
    elastic: bool = False
    logs: bool = False
    large: bool = False
    loop: str = "plain"

    @property
    def label(self) -> str:
        """The plan, and whether members are elastic."""
        return f"{self.plan}, elastic" if self.elastic else self.plan

    @property
    def takes_s(self) -> float:
        """A step's time, about."""
        return self.step_s + (0.15 if self.large else 0.0)

    @property
    def strikes_s(self) -> float:
        """Within so long after its step began the victim is struck from outside; a search for a plan takes seconds."""
        return 2.0 if self.plan == "auto" and self.at_step <= LOOKS else self.takes_s

    @property
    def min_workers(self) -> int:
        """Without so many nobody trains."""
        return self.workers - self.fault.endswith("-joining")


def run_worker(trial: ChaosTrial, rank: int, folder: pathlib.Path) -> int:
    """Trains, writes how that ended to `end{rank}.json`, and returns the exit code."""
    faulthandler.register(WHERE, file=2, all_threads=False)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S")
    end: dict[str, Any] = {"end": "finished", "ranks": [], "steps": 0, "stepped_s": []}
    try:
        _train(trial, rank, folder, end)
    except BaseException as error:
        end |= {"end": type(error).__name__, "error": str(error)[:1000]}
        end["ranks"] = list(error.__dict__.get("ranks", ()))
        raise
    finally:
        end["ended_s"] = time.monotonic()
        _write(folder / f"end{rank}.json", end)
    return 0


def serve_lighthouse(trial: ChaosTrial, folder: pathlib.Path) -> None:
    """Is the lighthouse of an elastic job, until it is killed; where deadlines are longer, so is its patience."""
    from tightwire.transport import lighthouse

    dead_ms, join_ms = (
        max(usual, round(usual * trial.deadline_s / DEADLINE_S))
        for usual in (lighthouse.DEAD_MS, lighthouse.JOIN_MS)
    )
    serving = lighthouse.serve("127.0.0.1:0", dead_ms=dead_ms, join_ms=join_ms)
    port = serving.address().rpartition(":")[2]
    _write(folder / LIGHTHOUSE, {"pid": os.getpid(), "address": f"http://127.0.0.1:{port}"})
    signal.pause()


def _train(trial: ChaosTrial, rank: int, folder: pathlib.Path, end: dict[str, Any]) -> None:
    import torch

    import tightwire
    from tightwire.transport import join

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    is_victim = rank == trial.victim
    if is_victim and trial.at_step < 0:
        _write(folder / STRUCK, time.monotonic())
    if is_victim and trial.fault.endswith("-joining"):
        struck = signal.SIGKILL if trial.fault == "kill-joining" else signal.SIGSTOP
        threading.Timer(0.02 + 0.1 * trial.moment, os.kill, (os.getpid(), struck)).start()
        join._is_listening = _slowly(join._is_listening)
    tightwire.init(deadline_s=trial.deadline_s, late_s=trial.late_s, elastic=trial.elastic)
    torch.manual_seed(0)
    width = LARGE if trial.large else 8
    width += is_victim and trial.fault == "other-model"
    model = torch.nn.Sequential(torch.nn.Linear(20, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))
    rate = 0.02 if is_victim and trial.fault == "other-rate" else 0.01
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    plan = "local:3" if is_victim and trial.fault == "other-plan" else trial.plan
    carry = {"scheduler": scheduler} if trial.elastic and trial.loop == "scheduled" else None
    with tightwire.attach(model, optimizer, plan, carry=carry) as run:
        _write(folder / f"started{rank}", os.getpid())
        stepped = folder / f"{STEPPED}{rank}"
        while not run.is_server and run.step < trial.steps:
            step = run.step
            x = torch.randn(4, 20, generator=torch.Generator().manual_seed(1000 * rank + step))
            optimizer.zero_grad()
            if trial.loop == "accumulates":
                with run.accumulate():
                    (model(x.flip(0)) - rank).square().sum().backward()
            loss = (model(x) - rank).square().mean()
            is_struck = is_victim and step == trial.at_step
            if rank == 0 and step == trial.at_step:
                _write(folder / REACHED, step)
            if is_struck and trial.fault in SIGNALS:
                _strike(trial, folder, run)
            if is_struck and trial.fault == "nan":
                loss = loss * float("nan")
            if not (is_struck and trial.fault == "skip"):
                loss.backward()
            if is_struck and trial.fault not in SIGNALS:
                _strike(trial, folder, run)
                if trial.fault == "extra-pass":
                    model(x).sum().backward()
            optimizer.step()
            if trial.loop == "scheduled":
                scheduler.step()
            if trial.logs:
                torch.distributed.all_reduce(loss.detach())
            end["steps"], end["members"] = run.step, run.transport.size
            end["stepped_s"].append(round(time.monotonic(), 3))
            stepped.touch()
            time.sleep(trial.step_s)
        if run.is_server and is_victim:
            threading.Thread(target=_strike_server, args=(trial, folder, run), daemon=True).start()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    end["digest"] = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    end["finite"] = bool(flat.isfinite().all())
    tightwire.shutdown()


def _strike_server(trial: ChaosTrial, folder: pathlib.Path, run: Any) -> None:
    """Strikes a server, which makes no steps, by those of a worker."""
    while not (folder / REACHED).exists():
        time.sleep(0.001)
    _strike(trial, folder, run)


def _strike(trial: ChaosTrial, folder: pathlib.Path, run: Any) -> None:
    _write(folder / STRUCK, time.monotonic())
    match trial.fault:
        case fault if fault in SIGNALS:
            delay_s = trial.strikes_s * trial.moment
            threading.Timer(delay_s, os.kill, (os.getpid(), SIGNALS[fault])).start()
        case "launcher":
            print(STRIKE_ME, flush=True)
        case "kill-lighthouse":
            os.kill(json.loads((folder / LIGHTHOUSE).read_text(encoding="utf-8"))["pid"], signal.SIGKILL)
        case "slow":
            time.sleep(1.5 * trial.deadline_s)
        case "raise":
            raise ValueError("bad batch")
        case "exit":
            raise SystemExit(0)
        case "full-disk":
            _write_to_full_disk(run, folder / "disk")


def _write_to_full_disk(run: Any, disk: pathlib.Path) -> None:
    """Writes a file that does not fit: the disk is full, or, where none could be mounted, files may not be as long."""
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not disk.is_mount():
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, most))
    try:
        run.trace(disk / "trace.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))


def _slowly(call: Any) -> Any:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        return call(*arguments)

    return slow


def _write(path: pathlib.Path, content: Any) -> None:
    part = path.with_suffix(".writing")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.rename(path)


def _main() -> None:
    trial, folder = ChaosTrial(**json.loads(sys.argv[1])), pathlib.Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    os.dup2(os.open(folder / f"err{rank}", os.O_WRONLY | os.O_CREAT, 0o600), sys.stderr.fileno())
    run_worker(trial, rank, folder)


if __name__ == "__main__":
    _main()
