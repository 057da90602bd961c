"""`tightwire plan`: predict every plan, choose one, say why."""

from __future__ import annotations

import pathlib
from enum import StrEnum
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
from tightwire.planner import recommend

app = typer.Typer(rich_markup_mode=None)


class AllowChoice(StrEnum):
    """What may be changed about training."""

    LOSSLESS = "lossless"
    LOSSY = "lossy"


@app.command()
def plan(
    profile: ProfileOption = None,
    cluster: ClusterOption = None,
    allow: Annotated[
        AllowChoice, typer.Option(help="lossless: every step by the exact mean gradient. lossy: any plan.")
    ] = AllowChoice.LOSSLESS,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Write the chosen plan and its reasons here.", show_default=False),
    ] = None,
    gradients: GradientsOption = None,
    compute: ComputeOption = None,
    workers: WorkersOption = None,
    bandwidth: BandwidthOption = None,
    latency: LatencyOption = "50us",
    as_json: JsonOption = False,
) -> None:
    """Choose the fastest plan for a model on a cluster, and say why; or say that plain all-reduce is right.

    From measurements:

        tightwire plan --profile profile.yaml --cluster cluster.yaml --out plan.yaml

    Without owning the cluster, from round numbers:

        tightwire plan --gradients 100MB --compute 300ms --workers 8 --bandwidth 10gbit --allow lossy

    Then train with it: tw.attach(model, optimizer, plan="plan.yaml").
    """
    ranking = recommend(
        read_profile(profile, gradients, compute),
        read_cluster(cluster, workers, bandwidth, latency),
        allow=allow.value,
    )
    if out is not None:
        ranking.plan_file().write(out)
    others = [row for row in ranking.rows if row != ranking.chosen]
    print_ranking([ranking.chosen, *others], ranking.why, as_json)
