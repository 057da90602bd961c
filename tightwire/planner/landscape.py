"""The map: which method is best, over bandwidth, model intensity and workers, as the planner predicts it.

Methods are compared by the expected time to a loss: a step's time, times how many more steps a method needs than exact
means do. Intensity is compute per byte to agree on: a step's seconds for 100 MB of gradients. A model of 48 equal
layers stands for all of one intensity; codecs and copies run at an accelerator's memory rate, and nothing is measured.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tightwire import pages
from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.planner import STOCK, Allowance, deviation
from tightwire.planner.candidates import ALLOWANCES, is_allowed
from tightwire.planner.ranking import more_steps
from tightwire.planner.search import SAME_CLASS
from tightwire.planner.sweep import predictions_over
from tightwire.profile import Profile
from tightwire.profile.devices import derive, device
from tightwire.profile.models import model_shape

GRADIENT_BYTES = 100e6
LAYERS = 48
LATENCY_S = 2e-5
# Of memory at 900 GB/s.
PASS_S_PER_ELEMENT = 1.3e-11
GIGABITS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
COMPUTE_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
WORKERS = (4, 16, 64)
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1500px;margin:2rem auto;padding:0 1rem;color:#1d2129}"
    ".maps{display:grid;gap:1.5em;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}"
    ".maps>div{overflow-x:auto}table{border-collapse:collapse;line-height:1.2}caption{font-weight:bold;padding:.4em}"
    "td{text-align:center;border:1px solid #fff;min-width:44px;padding:3px}"
    "th{font-weight:normal;font-size:12px;padding:3px;text-align:right}"
    ".legend span{display:inline-block;padding:2px 8px;margin-bottom:3px}"
)
# Gains smaller than this are no reason to leave plain all-reduce.
LEAST_GAIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Idea:
    """What the literature argues for, as plans.

    Attributes:
        letter: on the map.
        title: what it is.
        colour: of the picture.
        plans: at settings that stand for it; the fastest counts.
    """

    letter: str
    title: str
    colour: str
    plans: tuple[str, ...]


IDEAS = (
    Idea(letter="A", title="plain all-reduce", colour="#d9dce1", plans=(STOCK,)),
    Idea(
        letter="B",
        title="the same bytes in a better order",
        colour="#9ecae9",
        plans=tuple(
            f"bsp/allreduce/none/{s}"
            for s in ("mgwfbp", "bytescheduler:4MiB,credit_bytes=16MiB", "dear", "fusion:4MiB")
        ),
    ),
    Idea(
        letter="R",
        title="another program, or servers",
        colour="#7aa6d4",
        plans=tuple(
            f"bsp/{a}/none/mgwfbp"
            for a in ("allreduce:recursive-doubling", "allreduce:halving-doubling", "ps")
        ),
    ),
    Idea(
        letter="H",
        title="half precision",
        colour="#88d27a",
        plans=("bsp/allreduce/bf16/mgwfbp", "bsp/allreduce/bf16/bytescheduler:4MiB,credit_bytes=16MiB"),
    ),
    Idea(
        letter="Q",
        title="8, 4 or 2 bits, with feedback",
        colour="#54a24b",
        plans=tuple(f"bsp/allreduce/int{bits}+ef/mgwfbp" for bits in (8, 4, 2)),
    ),
    Idea(
        letter="P",
        title="low rank, with feedback",
        colour="#eeca3b",
        plans=("bsp/allreduce/powersgd:4+ef/mgwfbp",),
    ),
    Idea(
        letter="S",
        title="sparse, with feedback",
        colour="#f58518",
        plans=tuple(f"bsp/allreduce/{c}+ef/mgwfbp" for c in ("topk:0.01", "topk:0.001", "oktopk:0.01")),
    ),
    Idea(letter="D", title="one step delayed", colour="#b79a20", plans=("delayed:1",)),
    Idea(
        letter="L",
        title="local steps",
        colour="#f08a8b",
        plans=tuple(f"local:{h}/allreduce/{c}" for h in (4, 16) for c in ("none", "int8+ef")),
    ),
    Idea(letter="O", title="DiLoCo", colour="#d09090", plans=("diloco:64", "diloco:64/allreduce/int4+ef")),
    Idea(
        letter="G",
        title="gossip",
        colour="#b279a2",
        plans=("bsp/gossip:one-peer-exponential/none/sequential",),
    ),
    Idea(
        letter="Y",
        title="asynchronous",
        colour="#a39b98",
        plans=("asp/ps/none/sequential", "ssp:3/ps/none/sequential"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class MapCell:
    """One place on the map.

    Attributes:
        allow: what may be changed about training.
        workers: how many.
        gigabits: each worker's line, payload, each way.
        compute_s: of one step, for 100 MB of gradients.
        letter: of the best idea: the mildest within 10 % of the fastest to a loss.
        plan: that stands for it.
        speedup: over plain all-reduce, to the loss that exact means reach.
        fastest: letter of the fastest.
    """

    allow: Allowance
    workers: int
    gigabits: float
    compute_s: float
    letter: str
    plan: str
    speedup: float
    fastest: str


def survey(
    on_cell: Callable[[], None] = lambda: None,
    *,
    workers: Sequence[int] = WORKERS,
    compute_s: Sequence[float] = COMPUTE_S,
    gigabits: Sequence[float] = GIGABITS,
) -> Iterator[MapCell]:
    """Yields every cell of one sweep; `on_cell` is told of each place, which is a cell per allowance."""
    axes = {"workers": workers, "compute": compute_s, "bandwidth": [g * 1e9 / 8 for g in gigabits]}
    places = itertools.product(workers, compute_s, gigabits)
    plans = {Plan.parse(text): idea for idea in IDEAS for text in idea.plans}
    start = Cluster.uniform(workers[0], axes["bandwidth"][0], LATENCY_S)
    sweeping = predictions_over(model(1.0), start, axes, list(plans))
    for place, (_, _, found) in zip(places, sweeping, strict=True):
        rows = [(row.step_s * more_steps(row.plan), row.plan, plans[row.plan]) for row in found]
        for allow in ALLOWANCES:
            yield _best(allow, [row for row in rows if is_allowed(row[1], allow)], place)
        on_cell()


def _best(
    allow: Allowance, rows: Sequence[tuple[float, Plan, Idea]], place: tuple[int, float, float]
) -> MapCell:
    stock_s, fastest = rows[0][0], min(rows, key=lambda row: row[0])
    equals = [row for row in rows if row[0] <= fastest[0] * (1 + SAME_CLASS)]
    step_s, plan, idea = min(equals, key=lambda row: (deviation(row[1]), row[0]))
    if step_s > stock_s * (1 - LEAST_GAIN):
        step_s, plan, idea = rows[0]
    workers, compute_s, gigabits = place
    return MapCell(
        allow=allow,
        workers=workers,
        gigabits=gigabits,
        compute_s=compute_s,
        letter=idea.letter,
        plan=str(plan),
        speedup=stock_s / step_s,
        fastest=fastest[2].letter,
    )


def model(compute_s: float) -> Profile:
    """Returns the profile that stands for all models of one intensity."""
    numel = round(GRADIENT_BYTES / 4 / LAYERS)
    even = Profile.uniform(
        layers=LAYERS, numel_per_layer=numel, forward_s=compute_s / 3, backward_s=compute_s * 2 / 3
    )
    side = 512  # methods that look at matrices see some
    parameters = tuple(
        dataclasses.replace(p, numel=side * (numel // side), shape=(numel // side, side))
        for p in even.parameters
    )
    return dataclasses.replace(even, parameters=parameters, pass_s_per_element=PASS_S_PER_ELEMENT)


def landmarks() -> Iterator[tuple[str, float]]:
    """Yields where known models stand: name, and a step's compute in seconds per 100 MB of gradients."""
    for name, on, batch in (
        ("vgg16", "v100", 32), ("bert-large", "a100", 32), ("gpt2-xl", "a100", 8), ("resnet50", "v100", 64),
        ("resnet50", "rtx2080ti", 64),
    ):  # fmt: skip
        profile = derive(model_shape(name), device(on), batch)
        yield f"{name} on {on}, {batch} samples", profile.compute_s * GRADIENT_BYTES / profile.num_bytes


def grids(cells: Sequence[MapCell]) -> Iterator[tuple[Allowance, int, list[list[MapCell]]]]:
    """Yields each map: an allowance, a number of workers, rows by intensity of cells by bandwidth."""
    by_place = {(c.allow, c.workers, c.compute_s, c.gigabits): c for c in cells}
    for allow in ALLOWANCES:
        for workers in WORKERS:
            yield allow, workers, [[by_place[allow, workers, s, g] for g in GIGABITS] for s in COMPUTE_S]


def legend(rows: Sequence[Sequence[MapCell]]) -> str:
    """Returns what the letters of one map mean, in the order of the ideas."""
    seen = {cell.letter for row in rows for cell in row}
    return "; ".join(f"{idea.letter}: {idea.title}" for idea in IDEAS if idea.letter in seen) + "."


def lines(cells: Sequence[MapCell]) -> Iterator[str]:
    """Yields the maps as Markdown that reads as text: a letter per cell, and how much sooner than plain all-reduce."""
    for allow, workers, rows in grids(cells):
        yield f"## {allow}, {workers} workers"
        yield ""
        yield legend(rows)
        yield ""
        yield "| compute per 100 MB | " + " | ".join(f"{g:>5g} Gb/s" for g in GIGABITS) + " |"
        yield "|---|" + "---|" * len(GIGABITS)
        for compute_s, row in zip(COMPUTE_S, rows, strict=True):
            printed = (f"{cell.letter} {cell.speedup:>6.1f} ×  " for cell in row)
            yield f"| {compute_s * 1e3:>15,g} ms | " + " | ".join(printed) + " |"
        yield ""
    yield "## Plans behind the letters"
    yield ""
    for idea in IDEAS:
        yield f"- {idea.letter}: {idea.title} (`{'`, `'.join(idea.plans)}`)"
    yield ""
    yield "## Where known models stand"
    yield ""
    for name, compute_s in landmarks():
        yield f"- {name}: {compute_s * 1e3:,.0f} ms of compute per 100 MB"


def page(cells: Sequence[MapCell], command: str) -> str:
    """Returns the maps as heat maps in a page that stands alone; a cell's plan is its tooltip."""
    legend = "".join(f"<span style=background:{i.colour}>{i.letter} {i.title}</span> " for i in IDEAS)
    maps = "".join(_heat_map(*grid) for grid in grids(cells))
    marks = "".join(f"<li>{html.escape(name)}: {s * 1e3:,.0f} ms" for name, s in landmarks())
    body = (
        "<h1>Which method is best where</h1><p>Predictions, not measurements. In a cell: the method that changes "
        "training least, among those within 10 % of the fastest, and how many times as fast as plain all-reduce "
        f"it reaches a loss, the steps counted in that it needs more. Down: compute per 100 MB of gradients. "
        f"Across: each worker's line. "
        f"<code>{command}</code></p>"
        f"<p class=legend>{legend}</p><div class=maps>{maps}</div><h2>Where known models stand</h2><ul>{marks}</ul>"
    )
    return pages.whole("Tightwire: the map", body, STYLE)


def _heat_map(allow: Allowance, workers: int, rows: Sequence[Sequence[MapCell]]) -> str:
    colours = {idea.letter: idea.colour for idea in IDEAS}
    head = "".join(f"<th>{g:g} Gb/s" for g in GIGABITS)
    body = ""
    for compute_s, row in zip(COMPUTE_S, rows, strict=True):
        body += f"<tr><th>{compute_s * 1e3:,g} ms" + "".join(
            f'<td style="background:{colours[c.letter]}" title="{html.escape(c.plan)}"><b>{c.letter}</b><br>'
            f"{c.speedup:.{0 if c.speedup >= 10 else 1}f}×"
            for c in row
        )
    return (
        f"<div><table><caption>{allow}, {workers} workers</caption><tr><th>compute{head}{body}</table></div>"
    )
