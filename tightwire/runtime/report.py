"""What a run did, beside what its plan said it would."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tightwire.planner.candidates import stock_plan
from tightwire.runtime.race import Contender

# A step this much longer or shorter than predicted is told with the part of it that was.
FAR_OFF = 0.15


@dataclass(frozen=True, kw_only=True)
class Report:
    """One worker's account of a run; `str()` prints it for people.

    Attributes:
        plan: the text of the plan in force.
        workers: how many.
        steps: optimizer steps made.
        rounds: agreements made.
        skipped: rounds dropped on all ranks because a mean was not finite.
        late: of this worker's gradients, those that came after their round and were dropped.
        planned_bytes: what the plan says that this worker sends in these rounds.
        sent_bytes: what the transport counted.
        buffer_bytes: what it counted besides, for buffers kept in step.
        step_s: typical time between the ends of steps, exchanges in proportion; None before the second step.
        exposed_s: how long this worker only waited for others in a step, typical as `step_s` is.
        predicted_step_s: what the planner expected; None when nothing was predicted.
        predicted: its parts as far as they were told: `exposed_s`, of waiting, and `codec_s`, of encoding and decoding.
        baseline_step_s: median step under plain all-reduce measured in this run; None when it was not measured.
        why: the planner's reasons.
        considered: plans that `auto` looked at, the best first, with the seconds that it expected of a step.
        contenders: of a race, the best expected first: what was expected of each, and what it did.
        waited_s: how long this worker only waited for others, in all.
        waited_s_by_worker: the same of every worker, by rank, as of `finish`; empty before.
        switch: what a switch that adds did for this worker, and what the hosts added in its place; empty without one.
        device_bytes: of a device's memory, what this run's exchanges hold; 0 in host memory.
        pinned_bytes: of host memory, what its messages cross.
        staleness: how often what was stepped with was so many steps old (behind servers, so many updates of others;
            in rounds with a quorum, how many of them had gone past this worker's change); empty where nothing ever is.
    """

    plan: str
    workers: int
    steps: int
    rounds: int
    skipped: int
    planned_bytes: int
    sent_bytes: int
    buffer_bytes: int
    step_s: float | None
    exposed_s: float
    late: int = 0
    predicted_step_s: float | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)
    baseline_step_s: float | None = None
    why: tuple[str, ...] = ()
    considered: tuple[tuple[str, float], ...] = ()
    contenders: tuple[Contender, ...] = ()
    waited_s: float = 0.0
    waited_s_by_worker: tuple[float, ...] = ()
    switch: str = ""
    device_bytes: int = 0
    pinned_bytes: int = 0
    staleness: Mapping[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [
            ("plan", self.plan),
            ("workers", str(self.workers)),
            ("steps", f"{self.steps} in {self.rounds} rounds" if self.workers > 1 else str(self.steps)),
            ("bytes sent", f"{self.sent_bytes:,} (planned {self.planned_bytes:,}){self._bytes_per_step()}"),
            ("step time", _milliseconds(self.step_s) + self._predicted()),
            ("exposed wait", f"{_milliseconds(self.exposed_s)} per step"),
        ]
        if off := where_off(self.step_s, self.exposed_s, self.predicted_step_s, self.predicted):
            rows.append(("prediction", off))
        if self.baseline_step_s and self.step_s and self.plan != str(stock_plan()):
            rows.append(
                ("speed-up", f"{self.baseline_step_s / self.step_s:.2f}× over plain all-reduce "
                 f"({_milliseconds(self.baseline_step_s)}, measured in this run)")
            )  # fmt: skip
        if self.waited_s_by_worker:
            rows.append(
                ("waited", ", ".join(f"rank {r} {s:.2f} s" for r, s in enumerate(self.waited_s_by_worker)))
            )
        if self.staleness:
            rows.append(("staleness", ", ".join(f"{age}: {times}×" for age, times in self.staleness.items())))
        if self.buffer_bytes:
            rows.append(("buffers", f"{self.buffer_bytes:,} bytes sent besides, to keep them in step"))
        if self.switch:
            rows.append(("switch", self.switch))
        if self.device_bytes or self.pinned_bytes:
            rows.append(
                ("memory added", f"{self.device_bytes:,} bytes on the device, {self.pinned_bytes:,} pinned")
            )
        if self.late:
            rows.append(
                ("late", f"{self.late} of this worker's gradients came after their round, and were dropped")
            )
        if self.skipped:
            rows.append(
                ("skipped", f"{self.skipped} rounds with a NaN or Inf in the mean, on all ranks alike")
            )
        rows += [("why" if i == 0 else "", sentence) for i, sentence in enumerate(self.why)]
        return "\n".join(f"{name:<13} {text}" for name, text in rows)

    def _bytes_per_step(self) -> str:
        return f", {self.sent_bytes / self.steps:,.0f} per step" if self.steps else ""

    def _predicted(self) -> str:
        return f" (predicted {_milliseconds(self.predicted_step_s)})" if self.predicted_step_s else ""


def where_off(
    step_s: float | None, exposed_s: float, predicted_step_s: float | None, predicted: Mapping[str, float]
) -> str:
    """Returns where a prediction was far off; nothing where it was not, or where no part of it is known.

    >>> where_off(0.15, 0.02, 0.1, {"exposed_s": 0.01, "codec_s": 0.002})
    'a step takes 1.50 times as long as predicted: computing 130.0 ms, predicted 90.0 ms'
    >>> where_off(0.15, 0.06, 0.1, {"exposed_s": 0.02, "codec_s": 0.015}).partition("; ")[2]
    '15.0 ms of it were to be codecs, which are not timed apart here: `tightwire profile` times them'
    >>> where_off(0.105, 0.06, 0.1, {"exposed_s": 0.02})
    ''

    Args:
        step_s: measured.
        exposed_s: what of it was only waited.
        predicted_step_s: what was expected of a step.
        predicted: of its parts, by name.
    """
    expected_s = predicted.get("exposed_s")
    if not step_s or not predicted_step_s or expected_s is None:
        return ""
    times = step_s / predicted_step_s
    if 1 / (1 + FAR_OFF) <= times <= 1 + FAR_OFF:
        return ""
    parts = {
        "computing": (step_s - exposed_s, predicted_step_s - expected_s),
        "waiting for the exchange": (exposed_s, expected_s),
    }
    name, (seen_s, told_s) = max(
        parts.items(), key=lambda part: (part[1][0] - part[1][1]) * (1 if times > 1 else -1)
    )
    said = (
        f"a step takes {times:.2f} times as long as predicted: {name} {_milliseconds(seen_s)}, predicted "
        f"{_milliseconds(told_s)}"
    )
    codec_s = predicted.get("codec_s", 0.0)
    if times > 1 and name != "computing" and codec_s > 0.1 * predicted_step_s:
        said += (
            f"; {_milliseconds(codec_s)} of it were to be codecs, which are not timed apart here: `tightwire profile` "
            "times them"
        )
    return said


def typical_step_s(steps_s: Sequence[float], steps_per_round: int) -> float | None:
    """Returns the median, over all stretches of one round, of the mean step: exchanges count in their proportion.

    >>> typical_step_s([1.0, 1.0, 4.0, 1.0, 1.0, 4.0], 3)
    2.0
    """
    length = min(steps_per_round, len(steps_s))
    stretches = [sum(steps_s[i : i + length]) / length for i in range(len(steps_s) - length + 1) if length]
    return statistics.median(stretches) if stretches else None


def _milliseconds(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{seconds * 1e3:,.1f} ms"
