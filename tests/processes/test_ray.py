"""Ray Train: a worker that fails goes on from Ray's checkpoint, to the bit; the example runs. Ray starts slowly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import runpy, sys

import ray, ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(settings):
    import json
    import pathlib

    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import tightwire as tw
    from tightwire.integrations.ray import report, resume

    transport = tw.init()

    def parts():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
        return model, torch.optim.AdamW(model.parameters(), lr=0.05)

    def steps(model, optimizer, numbers):
        for number in numbers:
            g = torch.Generator().manual_seed(10 * number + transport.rank)
            optimizer.zero_grad()
            (model(torch.randn(8, 12, generator=g)) - 1).square().mean().backward()
            optimizer.step()

    def values(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def trained(plan):
        model, optimizer = parts()
        with tw.attach(model, optimizer, plan) as run:
            steps(model, optimizer, range(6))
        return values(model)

    model, optimizer = parts()
    with tw.attach(model, optimizer, settings["plan"]) as run:
        begin = resume(run, model, optimizer).get("step", 0)
        if begin == 0:
            steps(model, optimizer, range(3))
            report({"step": 3}, run, model, optimizer, step=3)
            steps(model, optimizer, range(3, 5))
            ray.train.get_all_reported_checkpoints()  # waits until Ray has it
            if transport.rank == 1:
                raise RuntimeError("a cosmic ray")
        steps(model, optimizer, range(begin, 6))
    stock, optimizer = parts()
    steps(DistributedDataParallel(stock), optimizer, range(6))
    found = {
        "begin": begin,
        "resumed": float((values(model) - trained(settings["plan"])).abs().max()),
        "bsp": float((trained("bsp") - values(stock)).abs().max()),
    }
    (pathlib.Path(settings["folder"]) / f"{transport.rank}.json").write_text(json.dumps(found))


try:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
except Exception as failure:  # such as a machine too busy for Ray's own deadlines
    print(f"Ray does not start here: {failure}")
    sys.exit(77)
folder = sys.argv[1]
trainer = TorchTrainer(
    train,
    train_loop_config={"plan": "local:2/allreduce/int8+ef", "folder": folder},
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=1)),
)
trainer.fit()
example = runpy.run_path("examples/with_ray.py")
trainer = TorchTrainer(
    example["train"],
    train_loop_config={"plan": "bsp"},
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(storage_path=folder),
)
print("loss", trainer.fit().metrics["loss"])
"""


@pytest.mark.timeout(900)
def test_a_failed_worker_goes_on_from_rays_checkpoint(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--ray"):
        pytest.skip(
            "Ray starts for minutes on two cores; ask for it: pytest --ray tests/processes/test_ray.py"
        )
    pytest.importorskip("ray")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_raylet_start_wait_time_s": "120", "OMP_NUM_THREADS": "1"},
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-5000:]
    assert "loss" in done.stdout
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"begin": 3, "resumed": 0.0, "bsp": pytest.approx(0.0, abs=1e-6)}
