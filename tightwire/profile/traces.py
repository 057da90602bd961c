"""Profiles and clusters from PyTorch profiler traces (`export_chrome_trace`, with `record_shapes=True`).

A step ends where the optimizer's step ends. Its backward begins with the autograd engine's first function and ends with
its last; a gradient is ready when `AccumulateGrad` ends. Names of parameters are not in a trace: they are numbered in
backward's order. A collective's time on one rank holds the waiting for the others: the least over ranks counts, that of
who came last.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tightwire import files
from tightwire.cluster import Cluster
from tightwire.cluster.imports import measured_all_reduce
from tightwire.errors import FileError
from tightwire.profile.values import ParameterProfile, Profile

Event = Mapping[str, Any]
ITEM_BYTES = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Int": 4, "Long": 8, "Byte": 1, "Char": 1}


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One step, in seconds from where the step before ended."""

    backward_start_s: float
    backward_end_s: float
    end_s: float
    gradients: tuple[tuple[tuple[int, ...], float], ...]  # shape, when it was ready


def profile_of_trace(path: str | pathlib.Path) -> Profile:
    """Returns the profile of one rank's trace of at least three steps; the first one is left out.

    Raises:
        FileError: unreadable, too few steps, no shapes, or steps of different layers.
    """
    steps = list(_steps(_events(path)))[1:]
    if len(steps) < 2:
        raise FileError(
            f"{path} holds {len(steps) + 1} whole steps, and three are needed: profile a few more, optimizer included."
        )
    shapes = [tuple(shape for shape, _ in step.gradients) for step in steps]
    if not shapes[0] or len(set(shapes)) > 1:
        raise FileError(
            f"{path}: the steps do not produce the same gradients ({', '.join(str(len(s)) for s in shapes)} of them): "
            "layers are missing. Profile with record_shapes=True, and steps that train the whole model."
        )
    backward_s = statistics.median(step.backward_end_s - step.backward_start_s for step in steps)
    wholes_s = [step.end_s for step in steps]
    parameters = []
    for number, shape in enumerate(shapes[0]):
        ready_s = statistics.median(step.gradients[number][1] - step.backward_start_s for step in steps)
        numel = 1
        for side in shape:
            numel *= side
        parameters.append(
            ParameterProfile(
                name=f"gradient{number}", numel=numel, ready_s=min(backward_s, ready_s), shape=shape
            )
        )
    return Profile(
        forward_s=statistics.median(step.backward_start_s for step in steps),
        backward_s=backward_s,
        optimizer_s=statistics.median(step.end_s - step.backward_end_s for step in steps),
        parameters=tuple(parameters),
        noise=min(10.0, statistics.stdev(wholes_s) / statistics.median(wholes_s)),
    )


def cluster_of_traces(paths: Sequence[str | pathlib.Path]) -> Cluster:
    """Returns the cluster that the all-reduces in all ranks' traces were measured on.

    Raises:
        FileError: unreadable, no communication in them, or ranks that did not call the same collectives.
    """
    by_rank = [list(_all_reduces(_events(path))) for path in paths]
    if not all(by_rank) or len(paths) < 2:
        raise FileError(
            f"{', '.join(map(str, paths))}: no all-reduce with its size in "
            f"{'some of them' if len(paths) > 1 else 'the only one'}; a cluster needs the traces of all ranks of a job "
            "that communicates, at least two."
        )
    sizes = [[num_bytes for num_bytes, _ in calls] for calls in by_rank]
    if any(other != sizes[0] for other in sizes):
        raise FileError("the ranks' traces hold different all-reduces; profile the same steps on every rank.")
    least: dict[int, list[float]] = {}
    for calls in zip(*by_rank, strict=True):
        least.setdefault(calls[0][0], []).append(min(seconds for _, seconds in calls))
    points = [(size, statistics.median(times)) for size, times in sorted(least.items())]
    if len(points) < 2:
        raise FileError(
            "all all-reduces are of one size; α and β need two: use a smaller bucket size as well."
        )
    return measured_all_reduce(points, len(paths))


def _steps(events: Sequence[Event]) -> Iterator[_Step]:
    """Yields whole steps; what comes before the first optimizer step has no beginning, and is left out."""
    begun_us: float | None = None
    functions: list[Event] = []
    gradients: list[Event] = []
    for event in events:
        name = str(event["name"])
        if name.startswith("autograd::engine::evaluate_function"):
            functions.append(event)
        elif name == "torch::autograd::AccumulateGrad":
            gradients.append(event)
        elif name.startswith("Optimizer.step"):
            end_us = float(event["ts"]) + float(event["dur"])
            if begun_us is not None and functions:
                yield _step(begun_us, end_us, functions, gradients)
            begun_us = end_us
            functions, gradients = [], []


def _step(begun_us: float, end_us: float, functions: Sequence[Event], gradients: Sequence[Event]) -> _Step:
    def seconds(us: float) -> float:
        return (us - begun_us) / 1e6

    return _Step(
        backward_start_s=seconds(min(float(e["ts"]) for e in functions)),
        backward_end_s=seconds(max(float(e["ts"]) + float(e["dur"]) for e in functions)),
        end_s=seconds(end_us),
        gradients=tuple(
            (tuple(dims[0]), seconds(float(e["ts"]) + float(e["dur"])))
            for e in gradients
            if (dims := e.get("args", {}).get("Input Dims"))
        ),
    )


def _all_reduces(events: Sequence[Event]) -> Iterator[tuple[int, float]]:
    """Yields bytes and seconds of each all-reduce: of the kernels where there are some, else of the calls."""
    calls = [e for e in events if "reduce" in str(e.get("args", {}).get("Collective name", "")).lower()]
    kernels = [e for e in calls if e.get("cat") == "kernel"]
    for event in kernels or calls:
        args = event["args"]
        if "all" in str(args["Collective name"]).lower() and "In msg nelems" in args:
            num_bytes = int(args["In msg nelems"]) * ITEM_BYTES.get(str(args.get("dtype")), 4)
            yield num_bytes, float(event["dur"]) / 1e6


def _events(path: str | pathlib.Path) -> list[Event]:
    """Returns the complete events of a trace in the order of their beginnings."""
    trace = files.read_json(path)
    events = trace.get("traceEvents") if isinstance(trace, dict) else trace
    if not isinstance(events, list):
        raise FileError(f"{path} is no trace; write one with torch.profiler's export_chrome_trace.")
    complete = (e for e in events if e.get("ph") == "X" and "ts" in e and "dur" in e)
    return sorted(complete, key=lambda e: float(e["ts"]))
