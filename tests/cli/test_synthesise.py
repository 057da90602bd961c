"""`tightwire cluster synthesise`, and a plan file whose cluster the program is made for."""

import json
from pathlib import Path

import torch
from torch import nn
from typer.testing import CliRunner

from tightwire import attach
from tightwire.cli.cluster import app
from tightwire.cluster import Cluster, Link, LinkGraph
from tightwire.plan import PlanFile
from tightwire.transport import Transport, run_threads

LINES = (1e9, 2.5e8, 1e9, 1e9)
UNEVEN = Cluster.of_graph(
    LinkGraph(
        tuple(f"w{i}" for i in range(4)),
        tuple(Link(ends=(f"w{i}", "switch"), bandwidth_bytes_per_s=rate) for i, rate in enumerate(LINES)),
    )
)


def test_the_program_and_its_proof(tmp_path: Path) -> None:
    UNEVEN.write(tmp_path / "c.yaml")
    asked = ["synthesise", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "p.json"), "--json"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ratio"] == 1.0
    assert told["bound_s"] == 64e6 / LINES[1]
    assert json.loads((tmp_path / "p.json").read_text())["collective"] == "allreduce"


def test_a_plan_file_tells_the_links(tmp_path: Path) -> None:
    import dataclasses

    plan = PlanFile(
        plan="bsp/allreduce:synthesised",
        measured={"cluster": json.loads(json.dumps(dataclasses.asdict(UNEVEN)))},
    )
    plan.write(tmp_path / "plan.yaml")

    def train(transport: Transport) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(8, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, str(tmp_path / "plan.yaml"), transport=transport):
            model(torch.full((2, 8), float(transport.rank))).sum().backward()
            optimizer.step()
        return [float(x) for p in model.parameters() for x in p.detach().flatten()]

    first, *others = run_threads(4, train, deadline_s=20)
    assert all(other == first for other in others)


def test_what_cannot_be_written_is_refused_before_a_program_is_made(tmp_path: Path) -> None:
    for more, says in ((["--out", "plan.txt"], "--out plan.txt"), (["--size", "a lot"], "--size")):
        ended = CliRunner().invoke(app, ["synthesise", str(tmp_path / "missing.yaml"), *more])
        assert says in str(ended.exception)
