"""Trials whose fault is the network's: workers on the hosts of a lab, where a link can be cut."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import tempfile
from dataclasses import asdict
from typing import Final

from tightwire.bench.chaos.arena import MORE_S, START_S, Ended, Ending
from tightwire.bench.chaos.worker import CUT_ME, ChaosTrial
from tightwire.lab import Lab, OutputLine, Topology

RATE_BYTES_PER_S: Final = 25e6


def run_on_hosts(trial: ChaosTrial) -> Ending:
    """Runs one worker on each host, and cuts the victim's link when it says so.

    Raises:
        LabError: neither root nor user namespaces are to be had here.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tightwire-chaos-"))
    errors = [""] * trial.workers
    limit_s = START_S + trial.steps * trial.step_s + 2.5 * trial.deadline_s + MORE_S
    try:
        topology = Topology.parse("star", trial.workers, RATE_BYTES_PER_S)
        with Lab(topology, grace_s=trial.deadline_s + MORE_S) as lab:

            def on_line(line: OutputLine) -> None:
                if line.text == CUT_ME:
                    lab.cut(trial.victim)
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
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Ending(workers=tuple(workers), leftovers=())


def _ended(folder: pathlib.Path, rank: int, code: int, error: str) -> Ended:
    path = folder / f"end{rank}.json"
    if not path.exists():  # the lab ended it, for the time was over
        return Ended(code=None, end={}, seconds=0.0, error=error)
    return Ended(code=code, end=json.loads(path.read_text(encoding="utf-8")), seconds=0.0, error=error)
