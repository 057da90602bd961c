"""Traces: a real one gives the profile of its model; made-up ones give the cluster that they were made from."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from tightwire.errors import FileError
from tightwire.profile.traces import cluster_of_traces, profile_of_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "rank0.json"
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch_profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(32, 64)).sum().backward()
            optimizer.step()
    profiler.export_chrome_trace(str(path))
    return path


def test_a_real_trace(trace: Path) -> None:
    profile = profile_of_trace(trace)
    assert [p.shape for p in profile.parameters] == [(10,), (10, 128), (128,), (128, 64)]
    ready = [p.ready_s for p in profile.parameters]
    assert ready == sorted(ready)
    assert 0 < ready[-1] <= profile.backward_s
    assert profile.forward_s > 0
    assert profile.optimizer_s > 0


def test_missing_layers_and_steps_are_refused(trace: Path, tmp_path: Path) -> None:
    events = json.loads(trace.read_text())["traceEvents"]
    gradients = [e for e in events if e.get("name") == "torch::autograd::AccumulateGrad"]
    last = max(gradients, key=lambda e: e["ts"])
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([e for e in events if e is not last]))
    with pytest.raises(FileError, match="layers are missing"):
        profile_of_trace(path)
    path.write_text("[]")
    with pytest.raises(FileError, match="three are needed"):
        profile_of_trace(path)
    path.write_text("{}")
    with pytest.raises(FileError, match="is no trace"):
        profile_of_trace(path)


def calls(waits_us: list[float]) -> list[dict[str, object]]:
    return [
        {
            "ph": "X",
            "name": "nccl:all_reduce",
            "cat": "kernel",
            "ts": 1e6 * number,
            "dur": 50.0 + nelems * 4 / 1e3 + wait,
            "args": {
                "Collective name": "allreduce",
                "In msg nelems": nelems,
                "dtype": "Float",
                "Group size": 2,
            },
        }
        for number, (nelems, wait) in enumerate(zip((10**5, 10**6, 10**7), waits_us, strict=True))
    ]


def test_who_came_last_counts(tmp_path: Path) -> None:
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    paths[0].write_text(json.dumps(calls([0.0, 900.0, 0.0])))
    paths[1].write_text(json.dumps(calls([400.0, 0.0, 7.0])))
    fit = cluster_of_traces(paths).fit("native")
    assert fit is not None
    assert fit.alpha_s == pytest.approx(50e-6, rel=1e-6)
    assert 1 / fit.beta_s_per_byte == pytest.approx(
        1e9, rel=1e-6
    )  # over two ranks, a rank sends the buffer once


def test_traces_without_communication_are_refused(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no all-reduce with its size"):
        cluster_of_traces([trace, trace])
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    paths[0].write_text(json.dumps(calls([0.0, 0.0, 0.0])))
    paths[1].write_text(json.dumps(calls([0.0, 0.0, 0.0])[:2]))
    with pytest.raises(FileError, match="different all-reduces"):
        cluster_of_traces(paths)
