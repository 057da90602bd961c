"""Trials whose fault is the network's: workers on the hosts of a lab, each with a link of its own."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import tempfile
from dataclasses import asdict
from typing import Final

from tightwire.bench.chaos.arena import MORE_S, START_S, Ended, Ending, left_behind, struck_at
from tightwire.bench.chaos.worker import STRIKE_ME, ChaosTrial
from tightwire.lab import Lab, OutputLine, Topology

RATE_BYTES_PER_S: Final = 25e6
SLOW_BYTES_PER_S: Final = 125e3
LOSE_ONE_IN: Final = 32


def run_on_hosts(trial: ChaosTrial) -> Ending:
    """Runs one worker on each host, and harms the victim's link when it says so.

    Raises:
        LabError: neither root nor user namespaces are to be had here.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tightwire-chaos-"))
    errors = [""] * trial.workers
    limit_s = START_S + trial.steps * trial.takes_s + 2.5 * trial.deadline_s + MORE_S
    try:
        topology = Topology.parse("star", trial.workers, RATE_BYTES_PER_S)
        with Lab(topology, grace_s=trial.deadline_s + MORE_S) as lab:

            def on_line(line: OutputLine) -> None:
                if line.text == STRIKE_ME:
                    _harm(lab, trial)
                elif line.stream == "stderr" and line.text.strip():
                    errors[line.rank] = line.text

            argv = [
                sys.executable,
                "-m",
                "tightwire.bench.chaos.worker",
                json.dumps(asdict(trial)),
                str(folder),
            ]
            result = lab.run(argv, on_line=on_line, timeout_s=limit_s)
        workers = [
            _ended(folder, rank, result.exit_codes[rank], errors[rank]) for rank in range(trial.workers)
        ]
        struck_s, leftovers = struck_at(folder), left_behind(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Ending(workers=tuple(workers), leftovers=leftovers, struck_s=struck_s)


def _harm(lab: Lab, trial: ChaosTrial) -> None:
    match trial.fault:
        case "cut":
            lab.cut(trial.victim)
        case "half-open":
            lab.deafen(trial.victim)
        case "slow-link":
            lab.set_rate(SLOW_BYTES_PER_S, trial.victim)
        case "loss":
            lab.lose(trial.victim, LOSE_ONE_IN)


def _ended(folder: pathlib.Path, rank: int, code: int, error: str) -> Ended:
    path = folder / f"end{rank}.json"
    if not path.exists():  # the lab ended it, for the time was over
        return Ended(code=None, end={}, seconds=0.0, error=error)
    return Ended(code=code, end=json.loads(path.read_text(encoding="utf-8")), seconds=0.0, error=error)
