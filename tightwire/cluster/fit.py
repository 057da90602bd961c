"""How long a program takes on a cluster, by what it sends."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tightwire import files
from tightwire.cluster.limits import MAX_LATENCY_S, require_range
from tightwire.cluster.pieces import CostLine
from tightwire.errors import FileError

Source = Literal["measured", "prior"]
NcclWire = Literal["infiniband", "efa", "tcpxo"]
MAX_RESIDUAL = 10.0
# How far untuned formulas were from measured NCCL all-reduce in published comparisons: 20 to 78 %.
PRIOR_RESIDUAL = 0.2


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How long a program takes on this cluster: `alpha_s + beta_s_per_byte · sent`, or several such lines.

    `sent` is the payload that the busiest worker sends, which `predict_bytes` knows exactly for any codec; so
    1/β compares with the bandwidth of a line, whatever the program.

    Attributes:
        program: as in `allreduce:PROGRAM`.
        alpha_s: time of an exchange of nothing.
        beta_s_per_byte: more per payload byte that the busiest worker sends; of the largest exchanges where `lines`
            say more.
        lines: for programs that change with size, by payload bytes sent, ascending; none where one line is enough.
        cpu_s_per_byte: processor time that one worker spends on moving it, the reduction included.
        residual: root mean square of the relative errors of the fit, weighted by time.
        source: `measured`, or `prior` for the formula from latency and bandwidth.
    """

    __pydantic_config__: ClassVar = files.STRICT

    program: str
    alpha_s: float
    beta_s_per_byte: float
    lines: tuple[CostLine, ...] = ()
    cpu_s_per_byte: float = 0.0
    residual: float = 0.0
    source: Source = "measured"

    def __post_init__(self) -> None:
        require_range("alpha_s", self.alpha_s, 0.0, MAX_LATENCY_S * 1000)
        require_range("beta_s_per_byte", self.beta_s_per_byte, 0.0, 1.0)
        require_range("cpu_s_per_byte", self.cpu_s_per_byte, 0.0, 1.0)
        require_range("residual", self.residual, 0.0, MAX_RESIDUAL)

        sizes = [line.from_bytes for line in self.lines]
        if sizes and (sizes[0] != 0 or any(a >= b for a, b in itertools.pairwise(sizes))):
            raise FileError(
                f"lines: they begin at {sizes} bytes; the first begins at 0, and each after the last."
            )

    @classmethod
    def of(cls, program: str, lines: Sequence[CostLine], residual: float, source: Source = "measured") -> Fit:
        """Returns the fit of one line or several, from the smallest sizes to the largest."""
        return cls(
            program=program,
            alpha_s=lines[0].alpha_s,
            beta_s_per_byte=lines[-1].beta_s_per_byte,
            lines=tuple(lines) if len(lines) > 1 else (),
            residual=min(MAX_RESIDUAL, residual),
            source=source,
        )

    def at(self, sent_bytes: float) -> CostLine:
        """Returns α and β of exchanges in which the busiest worker sends about `sent_bytes`."""
        place = bisect.bisect_right(self.lines, sent_bytes, key=lambda line: line.from_bytes) - 1
        if self.lines:
            return self.lines[max(0, place)]
        return CostLine(from_bytes=0.0, alpha_s=self.alpha_s, beta_s_per_byte=self.beta_s_per_byte)

    def seconds(self, sent_bytes: float) -> float:
        """Returns the time of one exchange in which the busiest worker sends `sent_bytes`."""
        return self.at(sent_bytes).seconds(sent_bytes)

    def scaled(self, factor: float) -> Fit:
        """Returns this fit on links of `factor` times the bandwidth."""

        def faster(line: CostLine) -> CostLine:
            return dataclasses.replace(line, beta_s_per_byte=line.beta_s_per_byte / factor)

        return dataclasses.replace(
            self, beta_s_per_byte=self.beta_s_per_byte / factor, lines=tuple(map(faster, self.lines))
        )
