"""What is predicted of a plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from tightwire import files

Bound = Literal["compute", "wire", "latency", "codec"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Something on the critical path, in seconds from the start of the step."""

    __pydantic_config__: ClassVar = files.STRICT

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
        plan: its text.
        step_s: one optimizer step, end to end.
        low_s: step_s less two standard deviations of what the measurements leave open.
        high_s: step_s plus as much.
        compute_s: forward, backward and optimizer; slowed down by transfers where they share cores.
        codec_s: encoding and decoding, wherever it happens.
        exposed_s: waiting for the exchange, or for the slowest worker, with nothing to compute.
        bytes_per_step: payload that the busiest worker sends.
        bound_by: what most of the critical path is made of.
        critical_path: what the end of the step waited for, back to its start.
    """

    plan: str
    step_s: float
    low_s: float
    high_s: float
    compute_s: float
    codec_s: float
    exposed_s: float
    bytes_per_step: int
    bound_by: Bound
    critical_path: tuple[Span, ...]

    def named(self, plan: str) -> Prediction:
        """Returns this prediction as that of `plan`."""
        return dataclasses.replace(self, plan=plan)
