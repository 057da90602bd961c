"""Traces as other people's jobs write them: made up so that the right profile is known."""

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tightwire.errors import FileError
from tightwire.profile import Profile
from tightwire.profile.traces import cluster_of_traces, profile_of_trace
from tightwire.profile.traces.events import item_bytes

SHAPES = ([10], [10, 64], [64], [64, 32])
Events = list[dict[str, Any]]


def event(
    name: str, ts: float, us: float, *, cat: str = "cpu_op", tid: int = 1, **args: Any
) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": ts, "dur": us, "args": args}


class Clock:
    """Writes events one after another; microseconds."""

    def __init__(self) -> None:
        self.now, self.gpu, self.events = 1000.0, 1000.0, Events()
        self.numbers = itertools.count(1)

    def add(self, name: str, us: float, *, cat: str = "cpu_op", tid: int = 1, **args: Any) -> None:
        self.events.append(
            {
                "ph": "X",
                "cat": cat,
                "name": name,
                "pid": 9,
                "tid": tid,
                "ts": self.now,
                "dur": us,
                "args": args,
            }
        )
        self.now += us

    def launch(self, us: float, *, correlated: bool = True) -> None:
        """Launches a kernel inside the next operation; it lasts `us` and runs when the ones before it are over."""
        number = next(self.numbers)
        known = {"correlation": number} if correlated else {}
        if correlated:
            self.events.append(event("cudaLaunchKernel", self.now + 0.5, 1, cat="cuda_runtime", **known))
        self.gpu = max(self.gpu, self.now)
        self.events.append(event("gemm", self.gpu, us, cat="kernel", tid=7, stream=7, **known))
        self.gpu += us

    def forward(self) -> None:
        self.add("aten::linear", 300)

    def backward(self, shapes: Any = SHAPES, kind: str = "float") -> None:
        for shape in shapes:
            inside = self.now
            self.add("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 100, tid=2)
            gradient = {"Input Dims": [shape], "Input type": [kind]}
            self.events.append(event("torch::autograd::AccumulateGrad", inside + 1, 98, tid=2, **gradient))

    def optimizer(self, name: str = "Optimizer.step#SGD.step") -> None:
        self.add(name, 50, cat="user_annotation")


def plain(clock: Clock) -> None:
    clock.forward()
    clock.backward()
    clock.optimizer()


def accumulating(clock: Clock) -> None:
    for _ in range(3):
        clock.forward()
        clock.backward()
    clock.optimizer()


def parts_of_a_loss(clock: Clock) -> None:
    clock.forward()
    clock.backward(SHAPES[:2])
    clock.forward()
    clock.backward(SHAPES[2:])
    clock.optimizer()


def two_optimizers_in_a_row(clock: Clock) -> None:
    plain(clock)
    clock.optimizer("Optimizer.step#Muon.step")


def two_in_turns(clock: Clock) -> None:
    plain(clock)
    clock.forward()
    clock.backward([[7], [7, 7]])
    clock.optimizer("Optimizer.step#Adam.step")


def profiler_steps(clock: Clock) -> None:
    begin = clock.now
    clock.forward()
    clock.backward()
    span = {
        "ph": "X",
        "name": "ProfilerStep#3",
        "pid": 9,
        "tid": 1,
        "ts": begin,
        "dur": clock.now - begin,
        "args": {},
    }
    clock.events += [
        {**span, "cat": "user_annotation"},
        {**span, "cat": "gpu_user_annotation", "ts": begin + 77},
    ]


def written(step: Callable[[Clock], None], path: Path, steps: int = 4, **more: Any) -> Path:
    clock = Clock()
    for _ in range(steps):
        step(clock)
    path.write_text(json.dumps({"traceEvents": clock.events, **more}))
    return path


def times(profile: Profile) -> tuple[int, ...]:
    return tuple(round(1e6 * s) for s in (profile.forward_s, profile.backward_s, profile.optimizer_s))


STEPS = {
    plain: (300, 400, 50, 4),
    accumulating: (1700, 400, 50, 4),
    parts_of_a_loss: (800, 200, 50, 4),
    two_optimizers_in_a_row: (300, 400, 100, 4),
    two_in_turns: (1050, 200, 50, 6),
    profiler_steps: (300, 400, 0, 4),
}


@pytest.mark.parametrize(("step", "right"), STEPS.items(), ids=[step.__name__ for step in STEPS])
def test_steps_of_every_kind(step: Callable[[Clock], None], right: tuple[int, ...], tmp_path: Path) -> None:
    profile = profile_of_trace(written(step, tmp_path / "trace.json", steps=5))
    assert (*times(profile), len(profile.parameters)) == right
    assert profile.noise == pytest.approx(0.0, abs=1e-9)
    assert not profile.is_apart


@pytest.mark.parametrize("correlated", [True, False])
def test_a_device_that_works_after_the_host(correlated: bool, tmp_path: Path) -> None:
    def step(clock: Clock) -> None:
        clock.launch(5000, correlated=correlated)
        clock.forward()
        for shape in SHAPES:
            clock.launch(2000, correlated=correlated)
            clock.backward([shape])
        clock.launch(700, correlated=correlated)
        clock.optimizer()

    def exchanging(clock: Clock) -> None:
        step(clock)
        clock.events.append(event("ncclDevKernel_AllReduce", clock.gpu, 9e5, cat="kernel", tid=20, stream=20))

    def before_1_11(clock: Clock) -> None:
        step(clock)
        names = {"cpu_op": "Operator", "cuda_runtime": "Runtime", "kernel": "Kernel"}
        clock.events = [{**e, "cat": names.get(e["cat"], e["cat"])} for e in clock.events]

    for each in (step, exchanging, before_1_11):
        profile = profile_of_trace(written(each, tmp_path / "trace.json"))
        assert times(profile) == (5000, 8000, 700)
        assert [round(1e6 * p.ready_s) for p in profile.parameters] == [2000, 4000, 6000, 8000]
        assert profile.device == "gpu"
        assert profile.is_apart  # and buckets are not filled at the rate of a host's memory


def test_gzip_bare_words_and_types(tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(4):
        clock.forward()
        clock.backward(kind="c10::BFloat16")
        clock.optimizer()
    clock.events.append({"ph": "X", "name": "odd", "ts": "N/A", "dur": "nan", "args": {"bandwidth": "BARE"}})
    text = json.dumps({"traceEvents": clock.events}).replace('"BARE"', "inf").replace('"N/A"', "N/A")
    path = tmp_path / "host.1.pt.trace.json.gz"
    path.write_bytes(gzip.compress(text.encode()))
    profile = profile_of_trace(path)
    assert [p.itemsize for p in profile.parameters] == [2, 2, 2, 2]
    names = (
        "Float",
        "c10::Half",
        "torch.bfloat16",
        "long int",
        "Byte",
        "Float8_e5m2",
        "ComplexFloat",
        "BFloat16",
    )
    assert [item_bytes(name, "") for name in names] == [4, 2, 2, 8, 1, 1, 8, 2]
    with pytest.raises(FileError, match="dtype 'Posit' is not known"):
        item_bytes("Posit", "")


def call(group: str, ranks: int, nelems: Any, us: float, dtype: str = "BFloat16") -> dict[str, Any]:
    args = {"Collective name": "allreduce", "In msg nelems": nelems, "dtype": dtype, "Group size": ranks}
    return event("ncclDevKernel", 1.0, us, cat="kernel", tid=20, **args, **{"Process Group Name": group})


def test_process_groups_have_sizes_of_their_own(tmp_path: Path) -> None:
    paths = []
    for rank in range(2):
        events = [call("0", 4, n, 30 + 2 * n / 1e3) for n in (10**5, 10**6, 10**7)]
        events += [call(f"tensor{rank}", 2, n, 5.0) for n in (10**5, 10**6, 10**7, 10**5, 10**5)]
        events.append(call("0", 4, "N/A", 1e5))
        paths.append(tmp_path / f"{rank}.json")
        paths[-1].write_text(json.dumps(events))
    cluster = cluster_of_traces(paths)
    assert cluster.workers == 4
    assert cluster.fits[0].seconds(1.5 * 2e6) == pytest.approx(30e-6 + 2e-3)
    assert "2 of 4 ranks' traces" in cluster.notes[0]
    assert "other process groups, of 2 ranks" in cluster.notes[1]
    paths[0].write_text(json.dumps([call("0", 4, 10**5, 3.0, dtype="Posit")]))
    with pytest.raises(FileError, match="dtype 'Posit' is not known"):
        cluster_of_traces(paths)
