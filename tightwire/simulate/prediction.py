"""What is predicted of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tightwire.plan import Plan

Bound = Literal["compute", "wire", "latency", "codec", "copies", "stragglers"]


@dataclass(frozen=True, kw_only=True)
class PredictedSegment:
    """One stretch of the critical path, in seconds from the start of the step."""

    what: str
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How long a step takes by a plan, and why.

    Where several steps share an exchange, all of it is the mean per step, except `critical_path`: that of a round.

    Attributes:
        plan: what was predicted.
        step_s: one optimizer step, end to end.
        low_s: the lower end of the interval that holds the truth with a probability of 80 %.
        high_s: its upper end.
        compute_s: forward, backward and optimizer; slowed down by transfers where they share cores.
        codec_s: encoding and decoding, wherever it happens.
        exposed_s: waiting for the exchange, or for the slowest worker, with nothing to compute.
        bytes_per_step: payload that the busiest worker sends.
        bound_by: what most of the critical path is made of; never compute where workers wait for longer than that.
        critical_path: what the end of the step waited for, back to its start.
        across_bytes_per_step: payload that all workers together send from zone to zone, where the cluster gives it a
            price; else 0.
        wire_deviation_s: standard deviation of what is waited for, for the errors of the program's fit.
    """

    plan: Plan
    step_s: float
    low_s: float = 0.0
    high_s: float = 0.0
    compute_s: float
    codec_s: float
    exposed_s: float
    bytes_per_step: int
    bound_by: Bound
    critical_path: tuple[PredictedSegment, ...]
    wire_deviation_s: float = 0.0
    across_bytes_per_step: int = 0

    def values(self) -> dict[str, Any]:
        """Returns what files and JSON say of it: plain values, the plan as text, without the critical path."""
        return {
            "plan": str(self.plan),
            "step_s": self.step_s,
            "low_s": self.low_s,
            "high_s": self.high_s,
            "compute_s": self.compute_s,
            "codec_s": self.codec_s,
            "exposed_s": self.exposed_s,
            "bytes_per_step": self.bytes_per_step,
            "bound_by": self.bound_by,
        }


def bound_by(shares: Mapping[Bound, float], compute_s: float, exposed_s: float) -> Bound:
    """Returns what bounds a step.

    Args:
        shares: seconds of the critical path by what they are spent on.
        compute_s: of the step.
        exposed_s: waiting that no compute hides; more than compute, and compute is not the bound.
    """
    waits = [kind for kind in get_args(Bound) if kind != "compute"]
    kinds = waits if exposed_s > compute_s else ["compute", *waits]
    return max(kinds, key=lambda kind: shares.get(kind, 0.0))
