"""`tightwire plan`: predict every plan, choose one, say why."""

from __future__ import annotations

import json
import pathlib
from enum import StrEnum
from typing import Annotated, Any

import typer

from tightwire import files
from tightwire.cli.app import App
from tightwire.cli.measured import (
    MOST_ROWS,
    BandwidthOption,
    ClusterOption,
    ComputeOption,
    GradientsOption,
    LatencyOption,
    ProfileOption,
    WorkersOption,
    print_table,
    read_cluster,
    read_profile,
)
from tightwire.cli.options import JsonOption
from tightwire.errors import FileError
from tightwire.planner import Ranking, recommend
from tightwire.planner.curves import curves, figure
from tightwire.planner.curves import plot as plot_lines

app = App()


class AllowChoice(StrEnum):
    """What may be changed about training."""

    LOSSLESS = "lossless"
    LOSSY = "lossy"
    STALE = "stale"


@app.command()
def plan(
    profile: ProfileOption = None,
    cluster: ClusterOption = None,
    allow: Annotated[
        AllowChoice,
        typer.Option(
            help="lossless: every step by the exact mean gradient. lossy: by what compression leaves of it. stale: any "
            "plan, such as steps made alone or with old gradients."
        ),
    ] = AllowChoice.LOSSLESS,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Write the chosen plan and its reasons here.", show_default=False),
    ] = None,
    plot: Annotated[
        pathlib.Path | None,
        typer.Option(help="Draw throughput against bandwidth here, as .html or .png.", show_default=False),
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

        tightwire plan --gradients 100MB --compute 300ms --workers 8 \\
            --bandwidth 10gbit --allow lossy

    Then train with it:

        tw.attach(model, optimizer, plan="plan.yaml")
    """
    files.require_writable(out, plot)
    ranking = recommend(
        read_profile(profile, gradients, compute),
        read_cluster(cluster, workers, bandwidth, latency),
        allow=allow.value,
    )
    if out is not None:
        ranking.plan_file().write(out)
    bandwidths, drawn = curves(ranking) if plot is not None or not as_json else ((), ())
    if plot is not None:
        _draw(figure(bandwidths, drawn, ranking.cluster.bandwidth_bytes_per_s), plot)
    if as_json:
        typer.echo(json.dumps(_plain(ranking)))
        return
    rows = ranking.shortlist
    print_table(rows, [ranking.chance(row) for row in rows[:MOST_ROWS]])
    typer.echo(
        f"{ranking.considered} plans looked at, {ranking.pruned} of them left out by their lower bound."
    )
    for line in plot_lines(bandwidths, drawn, ranking.cluster.bandwidth_bytes_per_s):
        typer.echo(line)
    for sentence in ranking.why:
        typer.echo(sentence)


def _plain(ranking: Ranking) -> dict[str, Any]:
    """Returns all rows, the chosen one first."""
    rows = [ranking.chosen, *(row for row in ranking.rows if row.plan != ranking.chosen.plan)]
    return {
        "ranking": [
            row.values() | {"beats_chosen": None if row == ranking.chosen else ranking.chance(row)}
            for row in rows
        ],
        "why": list(ranking.why),
        "confidence": ranking.confidence,
        "runner_up": ranking.runner_up and str(ranking.runner_up.plan),
        "considered": ranking.considered,
        "pruned": ranking.pruned,
    }


def _draw(drawing: Any, path: pathlib.Path) -> None:
    if path.suffix == ".html":
        files.write_text(path, drawing.to_html(include_plotlyjs=True))
        return
    if path.suffix != ".png":
        raise FileError(f"--plot {path}: a plot is written as .html or .png.")
    try:
        picture = drawing.to_image(format="png")
    except (ImportError, ValueError, RuntimeError):
        raise FileError(
            f"--plot {path}: pictures need kaleido; pip install kaleido, or write .html."
        ) from None
    files.write_bytes(path, picture)
