"""The tour: a real model on a slow network, under stock DDP and under the plans that Tightwire chooses.

The network is emulated on this machine; everything else is real.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tightwire import files
from tightwire.errors import LabError
from tightwire.lab import Lab, OutputLine, Topology
from tightwire.plan import Plan

DDP, DDP_POWERSGD, RACE = "ddp", "ddp+powersgd:4", "race"
STOCK = (DDP, DDP_POWERSGD)
# Texts of plans apart, what a tour can be asked for; a tour that is not asked shows what most would choose between.
WANTED = (*STOCK, "lossless", "lossy", "stale", RACE)
SHOWN = (*STOCK, "lossless", RACE)
# A tour is short, and shows a race all the same: of its time this much, where a race by default costs less.
RACE_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class TourOptions:
    """What to show.

    Attributes:
        workers: in the emulated cluster.
        rate_bytes_per_s: of each worker's link, each way, headers included.
        seconds: of training per plan.
        plans: texts of plans, `ddp` for stock DDP, `ddp+powersgd:4` for stock DDP with the stock PowerSGD hook, an
            allowance for the best plan that it admits, `race` for the one that wins a race among all.
        out: folder for the report, the measurements, the plan files and the traces.
    """

    workers: int = 4
    rate_bytes_per_s: float = 25e6
    seconds: float = 45.0
    plans: tuple[str, ...] = SHOWN
    out: pathlib.Path = pathlib.Path("out")

    def __post_init__(self) -> None:
        if not 1 <= self.seconds < math.inf:
            raise LabError(
                f"a tour of {self.seconds:g} s per plan shows nothing; give it at least 1, better 45."
            )
        if self.workers < 2:
            raise LabError(f"a tour of {self.workers} workers has nobody to agree with; take at least 2.")
        if not self.plans:
            raise LabError(f"a tour without a plan shows nothing; give it some, as in {' '.join(SHOWN)}.")
        for plan in self.plans:
            if plan not in WANTED:
                Plan.parse(plan)


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """One line of the tour's table; times in seconds, bytes of payload that each worker sends.

    `asked` is what the tour was asked for, as in `TourOptions.plans`; `plan` is what trained.
    """

    plan: str
    role: str
    steps: int
    seconds: float
    step_s: float
    predicted_step_s: float
    bytes_per_step: int
    exposed_s: float
    heldout_loss: float
    curve: tuple[tuple[float, int, float], ...]
    trace: pathlib.Path | None
    asked: str = ""

    @property
    def prediction_error(self) -> float:
        """Predicted over measured step time, less 1."""
        return self.predicted_step_s / self.step_s - 1

    def first_at(self, loss: float) -> float | None:
        """Returns the seconds until the curve first reaches a held-out loss, straight between its points; None: never.

        Args:
            loss: such as stock DDP's at the end.
        """
        for (before_s, _, before), (after_s, _, after) in itertools.pairwise(self.curve):
            if before <= loss:
                return before_s
            if after <= loss:
                return before_s + (after_s - before_s) * (before - loss) / (before - after)
        return None


@dataclass(kw_only=True)
class TourResult:
    """All that the tour found out.

    Attributes:
        lab: what the emulated cluster is, in a sentence.
        compared: False where stock DDP could not be slowed down with the rest, and was left out.
        facts: what the probe and the profiler measured.
        why: the planner's reasons, by allowance.
        plans: one per plan, in the order of training.
    """

    options: TourOptions
    lab: str = ""
    compared: bool = True
    facts: dict[str, float] = field(default_factory=dict)
    why: dict[str, list[str]] = field(default_factory=dict)
    plans: list[PlanResult] = field(default_factory=list)

    @property
    def stock(self) -> PlanResult | None:
        """Stock DDP as it comes; None where it was not compared."""
        return next((plan for plan in self.plans if plan.plan == DDP), None)

    def to_ddp_loss_s(self, plan: PlanResult) -> float | None:
        """Returns the seconds that a plan needed to the loss that stock DDP ended with; None if it never got there."""
        return None if self.stock is None else plan.first_at(self.stock.heldout_loss)

    def to_json(self) -> dict[str, Any]:
        """Returns the object of `tightwire tour --json`."""
        return {
            "rate_bytes_per_s": self.options.rate_bytes_per_s,
            "workers": self.options.workers,
            "lab": self.lab,
            "why": self.why,
            **self.facts,
            "plans": [
                _plain(asdict(plan)) | {"to_ddp_loss_s": self.to_ddp_loss_s(plan)} for plan in self.plans
            ],
        }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in row.items()}


Event = dict[str, Any]


def run(options: TourOptions, on_event: Callable[[Event], None] = lambda _: None) -> TourResult:
    """Takes the tour.

    Args:
        options: what to show.
        on_event: told of every stage as it begins, of progress within it, and of results.

    Raises:
        LabError: the emulated cluster cannot be built, or a worker failed; with its last words.
    """
    files.make_directory(options.out)
    result = TourResult(options=options)
    topology = Topology(workers=options.workers, rate_bytes_per_s=options.rate_bytes_per_s)
    with Lab(topology) as lab:
        result.lab = lab.describe()
        plans = options.plans
        if not lab.shapes_everything:
            result.compared, plans = False, tuple(p for p in plans if p not in STOCK)
        if not plans:
            raise LabError(
                f"a tour of stock DDP alone shows nothing where nothing can slow it down: {result.lab} Ask for other "
                "plans too."
            )
        on_event({"event": "lab", "lab": result.lab})
        _work(lab, plans, result, on_event)
    return result


def _work(lab: Lab, plans: Sequence[str], result: TourResult, on_event: Callable[[Event], None]) -> None:
    words: list[str] = []

    def observe(line: OutputLine) -> None:
        event = _event(line)
        if event is None:
            words.append(f"[{line.rank}] {line.text}")
            return
        _take(event, result)
        on_event(event)

    order = {
        "seconds": result.options.seconds,
        "plans": list(plans),
        "out": str(result.options.out.resolve()),
    }
    ended = lab.run([sys.executable, "-m", "tightwire.tour.worker", json.dumps(order)], on_line=observe)
    if ended.exit_code != 0:
        raise LabError("the tour's training failed: " + ended.describe() + "\n" + "\n".join(words[-20:]))


def _event(line: OutputLine) -> Event | None:
    if line.rank != 0 or not line.text.startswith('{"event"'):
        return None
    event: Event = json.loads(line.text)
    return event


def _take(event: Event, result: TourResult) -> None:
    """Keeps what an event tells of results."""
    match event["event"]:
        case "probed" | "profiled":
            result.facts |= {key: value for key, value in event.items() if key != "event"}
        case "planned":
            result.why = event["why"]
        case "trained":
            result.plans.append(_row(event, result))


def _row(event: Event, result: TourResult) -> PlanResult:
    training, prediction = event["training"], event["prediction"]
    step_s, payload = training["step_s"], training["payload_bytes"]
    is_stock = event["role"] == DDP
    return PlanResult(
        plan=training["plan"],
        asked=event["asked"],
        role=event["role"],
        steps=training["steps"],
        seconds=training["seconds"],
        step_s=step_s,
        predicted_step_s=prediction["step_s"],
        bytes_per_step=prediction["bytes_per_step"] if is_stock else payload // training["steps"],
        exposed_s=step_s - result.facts["compute_s"] if is_stock else training["exposed_s"],
        heldout_loss=training["curve"][-1][2],
        curve=tuple((t, s, loss) for t, s, loss in training["curve"]),
        trace=None if is_stock else result.options.out / f"trace-{event['number']}.json",
    )
