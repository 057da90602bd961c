"""`tightwire simulate`: predict the plans that are asked for."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tightwire.cli.app import App
from tightwire.cli.facts import (
    BandwidthOption,
    BatchOption,
    ClusterOption,
    ComputeOption,
    DeviceOption,
    DtypeOption,
    GradientsOption,
    HardwareOption,
    KindsOption,
    LatencyOption,
    LengthOption,
    ModelOption,
    OverOption,
    ProfileOption,
    TopologyOption,
    WorkersOption,
)
from tightwire.cli.measured import Asked, print_ranking
from tightwire.cli.options import JsonOption
from tightwire.files import require_writable, write_text
from tightwire.planner import STOCK, describe, predict
from tightwire.planner.candidates import lacks_feedback
from tightwire.planner.explain_devices import explain_devices
from tightwire.simulate import Prediction

app = App()


@app.command()
def simulate(
    plans: Annotated[
        list[str], typer.Argument(help="Plans, such as bsp/allreduce:ring/bf16.", show_default=False)
    ],
    trace: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Write what each step waits for as a Perfetto trace, a track per plan.", show_default=False
        ),
    ] = None,
    profile: ProfileOption = None,
    cluster: ClusterOption = None,
    gradients: GradientsOption = None,
    compute: ComputeOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    batch: BatchOption = None,
    length: LengthOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    bandwidth: BandwidthOption = None,
    latency: LatencyOption = None,
    hardware: HardwareOption = None,
    topology: TopologyOption = None,
    kinds: KindsOption = None,
    over: OverOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the step time of plans, and what bounds each of them.

    tightwire simulate local:8 bsp/allreduce/int8+ef \\
        --profile profile.yaml --cluster cluster.yaml

    tightwire simulate bsp --gradients 100MB --compute 300ms \\
        --workers 8 --bandwidth 10gbit --trace critical-path.json
    """
    asked = Asked(
        profile=profile, cluster=cluster, gradients=gradients, compute=compute, model=model, device=device,
        batch=batch, length=length, dtype=dtype, workers=workers, bandwidth=bandwidth, latency=latency,
        hardware=hardware, topology=topology, kinds=kinds, over=over,
    )  # fmt: skip
    require_writable(trace)
    facts, wire = asked.read_profile(), asked.read_cluster()
    rows = sorted((predict(plan, facts, wire) for plan in plans), key=lambda row: row.step_s)
    stock = predict(STOCK, facts, wire)
    if trace is not None:
        events = [event for track, row in enumerate(rows) for event in _events(track, row)]
        write_text(trace, json.dumps({"traceEvents": events}))
    why = [describe(row, stock) for row in rows]
    why += explain_devices(facts, wire)
    why += [
        f"{row.plan} drops for good what it does not send, and may never reach the loss: write +ef behind it."
        for row in rows
        if lacks_feedback(row.plan)
    ]
    print_ranking(rows, why, as_json)


def _events(track: int, row: Prediction) -> Iterator[dict[str, Any]]:
    """Yields a prediction's critical path as Chrome trace events; times in microseconds."""
    yield {"ph": "M", "name": "thread_name", "pid": 0, "tid": track, "args": {"name": str(row.plan)}}
    for segment in row.critical_path:
        yield {
            "ph": "X",
            "name": segment.what,
            "pid": 0,
            "tid": track,
            "ts": segment.start_s * 1e6,
            "dur": segment.seconds * 1e6,
        }
