"""Jobs trained for an equal time: stock DDP, plans that are found, plans by hand; kept as they come, and told."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from tightwire import files
from tightwire.bench.kernels import default_kernels
from tightwire.catalogue import parse_member
from tightwire.compression import Codec, compile_kernels
from tightwire.errors import FileError, LabError
from tightwire.lab import Lab, OutputLine, Topology
from tightwire.study.study import DDP, DDP_POWERSGD
from tightwire.study.timed import FOUND, RACED, TimedTrial
from tightwire.units import print_rate

NAME = "race"
ABOUT = "at equal time, are the plans that are found behind stock DDP, or behind plans by hand?"
RATES = (6.25e6, 25e6, 125e6)
BY_HAND = (
    "bsp/allreduce/bf16",
    "bsp/allreduce/int8+ef",
    "bsp/allreduce/powersgd:4+ef",
    "bsp/allreduce/topk:0.01+ef",
    "local:8/allreduce/int8",
    "local:16/allreduce/powersgd:4+ef",
)
CONTESTANTS = (DDP, DDP_POWERSGD, *FOUND, *RACED, *BY_HAND)
# Beyond this, as a share of stock DDP's loss, a difference is no noise; see the spread of its seeds in the report.
NOISE = 0.02
WORDS_KEPT = 30


def asked(
    jobs: Sequence[str],
    rates: Sequence[float],
    contestants: Sequence[str],
    seconds: float,
    seeds: Sequence[int],
) -> list[TimedTrial]:
    """Returns all trials, rate by rate."""
    return [
        TimedTrial(job=job, rate_bytes_per_s=rate, seconds=seconds, contestant=who, seed=seed)
        for rate in rates
        for job in jobs
        for seed in seeds
        for who in contestants
    ]


class Kept:
    """Trials of so many workers in a file, written whole after each."""

    def __init__(self, path: pathlib.Path, workers: int) -> None:
        """Reads what is there.

        Raises:
            FileError: something else, or trials of another number of workers.
        """
        self.path, self.about = path, dict[str, Any]()
        self._workers = workers
        self._trials: dict[tuple[Any, ...], TimedTrial] = {}
        if path.exists():
            self._read(files.read_json(path))

    def _read(self, document: Any) -> None:
        try:
            known = document.get("workers", self._workers)
            for row in document["trials"]:
                trial = TimedTrial(**row | {"curve": tuple(map(tuple, row["curve"]))})
                self._trials[trial.key] = trial
        except (TypeError, KeyError, AttributeError) as error:
            raise FileError(
                f"{self.path} was to hold timed trials and cannot be read as such: {files.told(error)}. Move it away "
                "or give another --out."
            ) from None
        if known != self._workers:
            raise FileError(
                f"{self.path} holds trials of {known} workers, and these are of {self._workers}: give another --out."
            )

    def add(self, trial: TimedTrial) -> None:
        """Keeps a trial."""
        self._trials[trial.key] = trial
        rows = ",\n".join("  " + json.dumps(asdict(t)) for t in self._trials.values())
        about = json.dumps(self.about | {"workers": self._workers}, indent=1)[1:-1].strip("\n")
        files.write_text(
            self.path, "{\n" + about + (",\n" if about else "") + f' "trials": [\n{rows}\n ]\n}}\n'
        )

    def missing(self, wanted: Iterable[TimedTrial]) -> list[TimedTrial]:
        """Returns what was not made yet, or failed."""
        return [t for t in wanted if t.key not in self._trials or self._trials[t.key].error]

    def of(self, wanted: Iterable[TimedTrial]) -> list[TimedTrial]:
        """Returns what was made of what is wanted."""
        return [self._trials[t.key] for t in wanted if t.key in self._trials]


def conduct(
    wanted: Sequence[TimedTrial], workers: int, kept: Kept, on_trial: Callable[[TimedTrial], None]
) -> list[TimedTrial]:
    """Makes the trials that are missing; a trial that fails is kept with its error, and the others go on.

    Kernels are compiled before, as those of stock DDP are: no trial waits for that.

    Raises:
        LabError: no emulated cluster whose lines also hold stock DDP can be built, or its workers do not start.
    """
    if kept.missing(wanted):
        warm()
    for rate in dict.fromkeys(t.rate_bytes_per_s for t in wanted):
        queue = collections.deque(kept.missing(t for t in wanted if t.rate_bytes_per_s == rate))
        while queue:
            _run(rate, workers, queue, kept, on_trial)
    return kept.of(wanted)


def warm() -> None:
    """Compiles the kernels of all codecs, or finds them on disk."""
    for text in default_kernels():
        member = parse_member("compression", text)
        if isinstance(member, Codec):
            compile_kernels(member)


def _run(
    rate: float,
    workers: int,
    queue: collections.deque[TimedTrial],
    kept: Kept,
    on_trial: Callable[[TimedTrial], None],
) -> None:
    words: collections.deque[str] = collections.deque(maxlen=WORDS_KEPT)
    began = False

    def hear(line: OutputLine) -> None:
        nonlocal began
        if line.rank == 0 and line.text.startswith('{"began"'):
            began = True
        elif line.rank == 0 and line.text.startswith('{"trial"'):
            row = json.loads(line.text)["trial"]
            trial = TimedTrial(**row | {"curve": tuple(map(tuple, row["curve"]))})
            queue.popleft()
            kept.add(trial)
            on_trial(trial)
        else:
            words.append(f"[{line.rank}] {line.text}")

    with (
        Lab(Topology(workers=workers, rate_bytes_per_s=rate)) as lab,
        tempfile.TemporaryDirectory() as folder,
    ):
        if not lab.shapes_everything:
            raise LabError(f"stock DDP cannot be held to {print_rate(rate)} here: {lab.describe()}")
        order = pathlib.Path(folder) / "order.json"
        order.write_text(json.dumps([asdict(t) for t in queue]), encoding="utf-8")
        ended = lab.run(
            [sys.executable, "-W", "ignore", "-m", "tightwire.study.timed", str(order)], on_line=hear
        )
    if ended.ok:
        return
    if not began or not queue:
        raise LabError(f"the workers failed: {ended.describe()}\n" + "\n".join(words))
    last = [word for word in words if "Error" in word] or list(words)
    failed = replace(queue.popleft(), error=f"{ended.describe()} {last[-1] if last else ''}".strip())
    kept.add(failed)
    on_trial(failed)


def cells(trials: Sequence[TimedTrial]) -> list[dict[str, Any]]:
    """Returns one row per job, rate and contestant: its loss, over stock DDP's, and the time to stock DDP's loss.

    Losses and times are means over seeds. `over_ddp` compares the last quarter of the time, for the loss of one moment
    moves too much; `spread` is stock DDP's standard deviation of that over seeds, as a share of it.
    """
    by_cell: dict[tuple[str, float, str], list[TimedTrial]] = collections.defaultdict(list)
    for trial in trials:
        by_cell[trial.job, trial.rate_bytes_per_s, trial.contestant].append(trial)
    rows = []
    for (job, rate, who), mine in by_cell.items():
        ddp = by_cell.get((job, rate, DDP), [])
        losses, theirs = ([_loss(t) for t in of if not t.error] for of in (mine, ddp))
        goal = statistics.fmean(theirs) if theirs and all(map(math.isfinite, theirs)) else None
        late, their_late = ([t.late_loss for t in of if not t.error] for of in (mine, ddp))
        # Where stock DDP itself diverged, nothing can be said beside it.
        usual = statistics.fmean(their_late) if their_late and all(map(math.isfinite, their_late)) else None
        reached = [t.first_at(goal) for t in mine] if goal is not None else []
        known = [s for s in reached if s is not None]
        rows.append(
            {
                "job": job,
                "rate_bytes_per_s": rate,
                "contestant": who,
                "plan": " | ".join(dict.fromkeys(t.plan for t in mine if t.plan)),
                "loss": statistics.fmean(losses) if losses else None,
                "over_ddp": statistics.fmean(late) / usual - 1 if late and usual else None,
                "spread": statistics.stdev(their_late) / usual if usual and len(their_late) > 1 else None,
                "to_ddp_loss_s": statistics.fmean(known) if known and len(known) == len(reached) else None,
                "seconds": mine[0].seconds,
                "steps": round(statistics.fmean(t.steps for t in mine)),
                "error": " ".join(t.error for t in mine if t.error),
            }
        )
    return rows


def _loss(trial: TimedTrial) -> float:
    return math.inf if trial.loss is None else trial.loss


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what was asked, in sentences: behind stock DDP beyond noise, and behind the best plan by hand."""
    said = []
    for who in (*FOUND, *RACED):
        mine = [row for row in rows if row["contestant"] == who and row["over_ddp"] is not None]
        if not mine:
            continue
        behind = [
            f"{row['job']} at {print_rate(row['rate_bytes_per_s'])} ({row['over_ddp']:+.1%})"
            for row in mine
            if row["over_ddp"] > max(NOISE, 2 * (row["spread"] or 0.0))
        ]
        said.append(
            f"{who}: behind stock DDP at equal time in {len(behind)} of {len(mine)}"
            + (f": {', '.join(behind)}." if behind else ".")
        )
        ratios = sorted(filter(None, (_over_best(row, rows) for row in mine)))
        if ratios:
            said.append(
                f"{who}: the time to stock DDP's final loss is {statistics.median(ratios):.2f} × that of the best plan "
                f"by hand (median of {len(ratios)}; at most 1.15 × in {sum(r <= 1.15 for r in ratios)}; worst "
                f"{ratios[-1]:.2f})."
            )
        shares = sorted(row["to_ddp_loss_s"] / row["seconds"] for row in mine if row["to_ddp_loss_s"])
        if shares:
            said.append(
                f"{who}: reaches stock DDP's final loss in {statistics.median(shares):.2f} of its time (median; "
                f"{len(shares)} of {len(mine)} reach it)."
            )
    return said


def _over_best(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    cell = (row["job"], row["rate_bytes_per_s"])
    others = [other for other in rows if (other["job"], other["rate_bytes_per_s"]) == cell]
    if not row["to_ddp_loss_s"] or not any(other["contestant"] in BY_HAND for other in others):
        return None
    by_hand = (other["to_ddp_loss_s"] for other in others if other["contestant"] in (DDP, *BY_HAND))
    best = [seconds for seconds in by_hand if seconds]
    return row["to_ddp_loss_s"] / min(best) if best else None


def markdown(rows: Sequence[dict[str, Any]], workers: int) -> str:
    """Returns the report."""
    lines = [
        "# At equal time",
        "",
        f"{ABOUT[0].upper()}{ABOUT[1:]} {workers} workers; losses on held-out data; times include choosing the plan.",
        "Over DDP: the mean loss over the last quarter of the time, beside that of stock DDP.",
        "",
        *(f"- {sentence}" for sentence in verdicts(rows)),
        "",
    ]
    for title, cells in tables(rows):
        lines += [f"## {title}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (HEAD, ["---"] * len(HEAD), *cells)]
        lines.append("")
    return "\n".join(lines)


HEAD = ("job", "contestant", "plan", "steps", "loss", "over DDP", "to DDP's loss, s")


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yields a table per rate: its title, and its rows under `HEAD`."""
    for rate in dict.fromkeys(row["rate_bytes_per_s"] for row in rows):
        yield print_rate(rate), [_cells(row) for row in rows if row["rate_bytes_per_s"] == rate]


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["job"],
        row["contestant"],
        row["plan"].replace("|", "or") or row["error"][:60],
        str(row["steps"]),
        _text(row["loss"], "{:.4f}"),
        _text(row["over_ddp"], "{:+.1%}"),
        _text(row["to_ddp_loss_s"], "{:.1f}"),
    ]


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
