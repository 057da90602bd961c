"""`tightwire plan`: predict every plan, choose one, say why."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from tightwire import files
from tightwire.cli.app import App, progress
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
    PriceOption,
    ProfileOption,
    TopologyOption,
    TrafficPriceOption,
    WorkersOption,
)
from tightwire.cli.measured import MOST_ROWS, Asked, print_table
from tightwire.cli.options import JsonOption
from tightwire.cli.pictures import require_picture, write_picture
from tightwire.cli.table import print_rows, say, say_json, width_of
from tightwire.cluster import Prices
from tightwire.errors import FileError
from tightwire.planner import Ranking, recommend
from tightwire.planner.confidence import print_chance
from tightwire.planner.curves import curves, figure
from tightwire.planner.curves import plot as plot_lines
from tightwire.planner.explain_workers import batch_shares
from tightwire.planner.money import MOST_SAMPLES, cost_per_step, steps_per_epoch
from tightwire.planner.quality import Situation, extra_steps
from tightwire.planner.sweep import SweepRow, parse_axes, sweep, sweep_figure, table
from tightwire.simulate import Prediction

app = App()
# The drawing in text is as wide as this.
DRAWING_WIDTH = 76


# By step, and by loss.
CAPTIONS = (
    "The fastest of each kind; faster?: the probability to be truly faster than the chosen plan. Of plans about as "
    "fast, the one that changes training and stock PyTorch least is chosen.",
    "The best of each kind; to loss: against plain all-reduce, more steps counted in; sooner?: the probability to be "
    "there before the chosen plan. Of plans about as good, the one that changes training least is chosen, and none "
    "that needs another optimizer or begins as another plan.",
)


class AllowChoice(StrEnum):
    """What may be changed about training."""

    LOSSLESS = "lossless"
    LOSSY = "lossy"
    STALE = "stale"


class ByChoice(StrEnum):
    """What plans are compared by."""

    STEP = "step"
    LOSS = "loss"
    COST = "cost"


class SharesChoice(StrEnum):
    """How the batch is shared among workers of several kinds."""

    EQUAL = "equal"
    SPEED = "speed"


@app.command()
def plan(
    profile: ProfileOption = None,
    cluster: ClusterOption = None,
    allow: Annotated[
        AllowChoice,
        typer.Option(
            help="lossless: every step is made with the exact mean gradient. lossy: gradients may be compressed. "
            "stale: any plan, such as steps made alone or with old gradients."
        ),
    ] = AllowChoice.LOSSLESS,
    by: Annotated[
        ByChoice | None,
        typer.Option(
            help="What plans are compared by. step: the time of a step. loss: the expected time to the loss that exact "
            "means reach, by how many more steps each method was seen to need; so it is where lossy or stale plans "
            "are allowed, if nothing else is said. cost: what a step costs, by the prices of workers and of traffic.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Write the chosen plan and its reasons here.", show_default=False),
    ] = None,
    plot: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Draw steps per second against bandwidth here, as .html or .png.", show_default=False
        ),
    ] = None,
    sweep_over: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            help="Choose at every point of a grid instead: bandwidth=1gbit..400gbit,workers=8..512; also latency, "
            "compute. --plot then draws how well workers are used.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say more: what each answer buys, the runner-up, memory, a drawing."),
    ] = False,
    shares: Annotated[
        SharesChoice,
        typer.Option(
            help="Of the batch, among workers of several kinds. equal, or as the cluster file says; speed: each gets "
            "what it computes in the same time."
        ),
    ] = SharesChoice.EQUAL,
    samples_per_epoch: Annotated[
        int,
        typer.Option(
            help="Tell what an epoch of so many samples takes and costs.",
            show_default=False,
            min=0,
            max=MOST_SAMPLES,
        ),
    ] = 0,
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
    price: PriceOption = None,
    price_per_gb: TrafficPriceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the fastest plan for a model on a cluster, and say why; plain all-reduce or one worker may be right.

    From measurements:

        tightwire plan --profile profile.yaml --cluster cluster.yaml \\
            --out plan.yaml

    Without owning the cluster, from known models and hardware, or from round numbers:

        tightwire plan --model bert-base --device a100 --batch 32 \\
            --hardware aws-p4d:4

        tightwire plan --gradients 100MB --compute 300ms --workers 8 \\
            --bandwidth 10gbit --allow lossy

    Over ranges, at 9 points each, and at every power of two of workers:

        tightwire plan --gradients 100MB --compute 300ms --workers 8 \\
            --bandwidth 10gbit --sweep bandwidth=1gbit..400gbit,workers=8..512

    By what it costs, where hardware has a price, or --price and --price-per-gb tell one:

        tightwire plan --model gpt2 --device a100 --batch 8 --hardware aws-p4d:4 \\
            --by cost --samples-per-epoch 1000000

    Among workers that are not all alike:

        tightwire plan --model bert-base --device a100 --batch 32 \\
            --bandwidth 25gbit --kinds a100:4+v100:4,line=10gbit --shares speed

    Then train with it:

        tw.attach(model, optimizer, plan="plan.yaml")
    """
    asked = Asked(
        profile=profile, cluster=cluster, gradients=gradients, compute=compute, model=model, device=device,
        batch=batch, length=length, dtype=dtype, workers=workers, bandwidth=bandwidth, latency=latency,
        hardware=hardware, topology=topology, kinds=kinds, over=over, price=price, price_per_gb=price_per_gb,
    )  # fmt: skip
    files.require_writable(out, plot)
    require_picture(plot, "--plot")
    if sweep_over is not None:
        beside = {"--out": out, "--explain": explain, "--samples-per-epoch": samples_per_epoch}
        if refused := [option for option, value in beside.items() if value]:
            raise FileError(
                f"{refused[0]} is of one choice, and --sweep makes one at every point: leave out one of the two."
            )
        axes = parse_axes(sweep_over)
        facts, wire = asked.read_profile(), asked.read_cluster()
        shared = wire.balanced() if shares is SharesChoice.SPEED else wire
        with progress(None, "choosing at every point"):
            rows = sweep(facts, shared, axes, allow=allow.value, by=by.value if by else None)
        _sweep(rows, plot, as_json)
        return
    facts, wire = asked.read_profile(), asked.read_cluster()
    with progress(None, "predicting every plan"):
        ranking = recommend(
            facts,
            wire,
            allow=allow.value,
            by=by.value if by else None,
            shares=shares.value,
            samples_per_epoch=samples_per_epoch,
        )
    if out is not None:
        ranking.plan_file().write(out)
    if plot is not None:
        write_picture(figure(ranking), plot, "--plot")
    if as_json:
        say_json(_plain(ranking))
        return
    print_all(ranking, explain=explain)
    _say_next(ranking, out)


def _say_next(ranking: Ranking, out: pathlib.Path | None) -> None:
    """Says how a script trains with the chosen plan, where that is not what PyTorch does by itself."""
    if ranking.chosen == ranking.stock:
        return
    file = out or "plan.yaml"
    first = "The plan stands in" if out else "To train with the chosen plan, add --out"
    say(f'{first} {file}; in your script: tw.attach(model, optimizer, plan="{file}").')


def _sweep(rows: Sequence[SweepRow], plot: pathlib.Path | None, as_json: bool) -> None:
    if plot is not None:
        write_picture(sweep_figure(rows), plot, "--plot")
    if as_json:
        say_json({"sweep": [row.values() for row in rows]})
        return
    head, cells = table(rows)
    print_rows(
        head,
        cells,
        caption="x stock: a step against that of plain all-reduce; of one each: each worker's work, of one alone.",
    )


def print_all(ranking: Ranking, *, explain: bool) -> None:
    """Prints the sentences, the fastest plan of each kind and, if asked, what is to be said beyond."""
    width = width_of(sys.stdout)
    say(*ranking.why)
    typer.echo()
    rows = ranking.shortlist
    print_table(rows, _columns(ranking, rows[:MOST_ROWS]), CAPTIONS[ranking.by == "loss"])
    looked = f"{ranking.considered} plans looked at, {ranking.pruned} of them left out by their lower bound."
    say(looked if explain else f"{looked} More with --explain.")
    if not explain:
        return
    typer.echo()
    say(*ranking.details)
    if width is None or width >= DRAWING_WIDTH:
        bandwidths, drawn = curves(ranking)
        typer.echo()
        for line in plot_lines(bandwidths, drawn, ranking.cluster.bandwidth_bytes_per_s):
            typer.echo(line)


def _columns(ranking: Ranking, rows: Sequence[Prediction]) -> dict[str, list[str]]:
    """Returns what a ranking says of plans beyond their steps, by the heads of its columns."""
    sure = ["chosen" if row == ranking.chosen else print_chance(ranking.chance(row)) for row in rows]
    if ranking.by == "loss":
        return {
            "to loss": [f"{ranking.gain(row):.2f}×" for row in rows],
            "sooner?": sure,
            **_costs(ranking, rows),
        }
    return {"faster?": sure, **_costs(ranking, rows)}


def _costs(ranking: Ranking, rows: Sequence[Prediction]) -> dict[str, list[str]]:
    """Returns what a thousand steps cost by each plan; nothing where nobody told a price."""
    cluster = ranking.cluster
    if not cluster.price_per_hour:
        return {}
    prices = cluster.prices or Prices()
    return {"1,000 steps": [prices.show(1000 * cost_per_step(row, cluster)) for row in rows]}


def _money(ranking: Ranking, row: Prediction) -> dict[str, float]:
    """Returns what a plan costs, where prices are known."""
    if not ranking.cluster.price_per_hour:
        return {}
    each = cost_per_step(row, ranking.cluster)
    if not ranking.samples_per_epoch:
        return {"cost_per_step": each}
    steps = steps_per_epoch(ranking.profile, ranking.cluster.workers, ranking.samples_per_epoch)
    return {"cost_per_step": each, "cost_per_epoch": steps * each}


def _plain(ranking: Ranking) -> dict[str, Any]:
    """Returns all rows, the chosen one first."""
    rows = [ranking.chosen, *(row for row in ranking.rows if row.plan != ranking.chosen.plan)]
    return {
        "ranking": [
            row.values()
            | {
                "beats_chosen": None if row == ranking.chosen else ranking.chance(row),
                "more_steps": extra_steps(row.plan, Situation.of(ranking.profile)).factor,
            }
            | _money(ranking, row)
            for row in rows
        ],
        "why": list(ranking.why),
        "details": list(ranking.details),
        "confidence": ranking.confidence,
        "runner_up": ranking.runner_up and str(ranking.runner_up.plan),
        "considered": ranking.considered,
        "pruned": ranking.pruned,
        "batch_shares": batch_shares(ranking.cluster, ranking.profile.samples),
    }
