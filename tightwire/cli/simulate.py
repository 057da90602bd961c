"""`tightwire simulate`: predict the plans that are asked for."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tightwire import files
from tightwire.cli.app import App
from tightwire.cli.measured import (
    BandwidthOption,
    ClusterOption,
    ComputeOption,
    GradientsOption,
    LatencyOption,
    ProfileOption,
    WorkersOption,
    print_ranking,
    read_cluster,
    read_profile,
)
from tightwire.cli.options import JsonOption
from tightwire.planner import STOCK, describe, predict
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
    workers: WorkersOption = None,
    bandwidth: BandwidthOption = None,
    latency: LatencyOption = "50us",
    as_json: JsonOption = False,
) -> None:
    """Predict the step time of plans, and what bounds each of them.

    tightwire simulate local:8 bsp/allreduce/int8+ef \\
        --profile profile.yaml --cluster cluster.yaml

    tightwire simulate bsp --gradients 100MB --compute 300ms \\
        --workers 8 --bandwidth 10gbit --trace critical-path.json
    """
    files.require_writable(trace)
    model, wire = (
        read_profile(profile, gradients, compute),
        read_cluster(cluster, workers, bandwidth, latency),
    )
    rows = sorted((predict(plan, model, wire) for plan in plans), key=lambda row: row.step_s)
    stock = predict(STOCK, model, wire)
    if trace is not None:
        events = [event for track, row in enumerate(rows) for event in _events(track, row)]
        files.write_text(trace, json.dumps({"traceEvents": events}))
    print_ranking(rows, [describe(row, stock) for row in rows], as_json)


def _events(track: int, row: Prediction) -> Iterator[dict[str, Any]]:
    """Yields a prediction's critical path as Chrome trace events; times in microseconds."""
    yield {"ph": "M", "name": "thread_name", "pid": 0, "tid": track, "args": {"name": str(row.plan)}}
    for span in row.critical_path:
        yield {
            "ph": "X",
            "name": span.what,
            "pid": 0,
            "tid": track,
            "ts": span.start_s * 1e6,
            "dur": span.seconds * 1e6,
        }
