"""`tightwire simulate`: predict the plans that are asked for."""

from __future__ import annotations

from typing import Annotated

import typer

from tightwire.cli.measured import (
    BandwidthOption,
    ClusterOption,
    ComputeOption,
    GradientsOption,
    JsonOption,
    LatencyOption,
    ProfileOption,
    WorkersOption,
    print_ranking,
    read_cluster,
    read_profile,
)
from tightwire.planner import STOCK, describe, predict

app = typer.Typer(rich_markup_mode=None)


@app.command()
def simulate(
    plans: Annotated[
        list[str], typer.Argument(help="Plans, such as bsp/allreduce:ring/bf16.", show_default=False)
    ],
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

    tightwire simulate local:8 bsp/allreduce/int8+ef --profile profile.yaml --cluster cluster.yaml

    tightwire simulate bsp --gradients 100MB --compute 300ms --workers 8 --bandwidth 10gbit
    """
    model, wire = (
        read_profile(profile, gradients, compute),
        read_cluster(cluster, workers, bandwidth, latency),
    )
    rows = sorted((predict(plan, model, wire) for plan in plans), key=lambda row: row.step_s)
    stock = predict(STOCK, model, wire)
    print_ranking(rows, [describe(row, stock) for row in rows], as_json)
