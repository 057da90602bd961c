"""Training scripts as people write them, run under stock DDP and under plans of every family.

A new script is a file here and a line in `SCRIPTS`. The launching half starts two processes on this machine; the
working half, `python -m tightwire.bench.scripts.worker JSON`, trains in each of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tightwire.errors import LabError

# By name, the module and the function.
SCRIPTS = {
    "lstm": "recurrent",
    "char_transformer": "characters",
    "gan": "adversaries",
    "vae": "variational",
    "actor_critic": "actor_critic",
    "lbfgs": "second_order",
    "graph_net": "graphs",
    "gpt2": "pretrained",
    "bert": "pretrained",
    "t5": "pretrained",
    "llama": "pretrained",
    "mixtral": "pretrained",
    "lora": "adapters",
    "ema_and_swa": "averaged",
    "sam": "sharpness",
    "muon": "two_optimizers",
}
# Lossless plans of bulk steps are to equal DDP; the others are to train, or to refuse in a sentence.
PLANS = (
    "bsp",
    "bsp/allreduce:ring/none/mgwfbp",
    "bsp/allreduce:ring/none/p3",
    "bsp/allreduce/int8+ef",
    "bsp/allreduce/powersgd:2+ef",
    "delayed:1",
    "lag:0.1",
    "local:2",
    "diloco:2",
    "gaia:0.01",
    "ssp:1/ps",
    "bsp/gossip:ring",
)


@dataclass(frozen=True, kw_only=True)
class ScriptsBench:
    """What to run.

    Attributes:
        scripts: names of `SCRIPTS`.
        plans: their texts.
        workers: processes.
    """

    scripts: tuple[str, ...] = tuple(SCRIPTS)
    plans: tuple[str, ...] = PLANS
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class ScriptRow:
    """How one script went under one plan.

    Attributes:
        script: its name.
        plan: its text.
        verdict: `equal` to DDP within 1e-5, as lossless bulk plans must be; `trained`; `refused` in a sentence; or
            `wrong`.
        apart: the largest difference of a parameter from what DDP ended with.
        spread: the largest difference of a parameter between the ranks at the end.
        loss: the last of rank 0.
        why: of what was refused or went wrong.
    """

    script: str
    plan: str
    verdict: str
    apart: float = 0.0
    spread: float = 0.0
    loss: float = 0.0
    why: str = ""


def measure(bench: ScriptsBench, on_row: Callable[[ScriptRow], None]) -> list[ScriptRow]:
    """Runs the scripts on this machine's loopback; returns a row for each script and plan.

    Raises:
        LabError: a process failed.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(bench.workers),
    ]
    job = [*command, "-m", "tightwire.bench.scripts.worker", json.dumps(asdict(bench))]
    rows: list[ScriptRow] = []
    with subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                rows.append(ScriptRow(**json.loads(line)))
                on_row(rows[-1])
        errors = process.communicate()[1]
    if process.returncode:
        raise LabError(f"the scripts failed: {errors[-2000:]}")
    return rows


def summary(rows: Sequence[ScriptRow]) -> dict[str, Any]:
    """Returns how many rows came to each verdict."""
    return {v: sum(row.verdict == v for row in rows) for v in ("equal", "trained", "refused", "wrong")}
