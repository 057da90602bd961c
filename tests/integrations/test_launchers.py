"""Files for schedulers are what those read, and start workers that train: played without SLURM or Kubernetes."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
# Starts N processes with what SLURM 23 gives a step's tasks.
SRUN = """#!{python}
import os, subprocess, sys
command = sys.argv[1:]
assert command[0] == "--kill-on-bad-exit=1", command
step = {{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"}}
started = [
    subprocess.Popen(command[1:], env={{**os.environ, **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}})
    for rank in range(2)
]
sys.exit(max(process.wait() for process in started))
"""
ARGUMENTS = ["--steps", "2", "--plan", "bsp"]


def free_job_number() -> int:
    """Returns a job number whose port, 20000 and its last four digits, is free now."""
    while True:
        number = random.randrange(1, 10_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20_000 + number)):
                return number


def run(command: list[str], **env: str) -> str:
    clean = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**clean, "PATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_slurm(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    out = run(
        ["bash", str(EXAMPLES / "slurm.sbatch"), *ARGUMENTS], PATH=path, SLURM_JOB_ID=str(free_job_number())
    )
    assert "workers       2" in out


def test_kubernetes() -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["spec"]["runtimeRef"] == {"name": "torch-distributed"}
    trainer = job["spec"]["trainer"]
    known = {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}
    assert set(trainer) <= known
    assert all(isinstance(word, str) for word in [*trainer["command"], *trainer["args"]])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "2"}
    meeting = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    assert "workers       2" in run([*trainer["command"], *ARGUMENTS], **told, **meeting)


def test_torchtitan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's configuration, on a stand-in for torchtitan's registry where that is not installed."""
    pytest.importorskip("torch.distributed.fsdp")

    @dataclasses.dataclass
    class Spec:
        parallelize_fn: Any
        post_optimizer_build_fn: Any = None

    def parallelise(model: object, *, parallel_dims: Any) -> object:
        return model, parallel_dims.dp_replicate

    config = SimpleNamespace(
        model_spec=Spec(parallelise), parallelism=SimpleNamespace(), training=SimpleNamespace(steps=0)
    )
    registry = SimpleNamespace(llama3_debugmodel=lambda: config)
    monkeypatch.setitem(sys.modules, "torchtitan.models.llama3.config_registry", registry)
    monkeypatch.setitem(
        sys.modules, "torchtitan.trainer", SimpleNamespace(Trainer=SimpleNamespace(Config=object))
    )
    scope: dict[str, Any] = {"__name__": "example"}
    exec((EXAMPLES / "with_torchtitan.py").read_text(), scope)
    made = scope["two_sites"]()
    assert made.parallelism.data_parallel_replicate_degree == 2
    assert made.training.steps % 16 == 0
    dims = SimpleNamespace(dp_replicate=2)
    assert made.model_spec.parallelize_fn("model", parallel_dims=dims) == ("model", 1)
    assert dims.dp_replicate == 2
