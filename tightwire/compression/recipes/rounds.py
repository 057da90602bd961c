"""Named methods for what local rounds send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.compression.recipe import Recipe


@final
@dataclass(frozen=True)
class SparseLoCo(Recipe):
    """What SparseLoCo sends of a pseudo-gradient: the largest of every chunk in two bits, with decaying feedback.

    For local rounds whose outer step takes the mean: e ← 0.95e + Δ, the largest 64 of every 4096 elements of e are
    sent, e keeps the rest, and the leftover is the momentum (Algorithm 1):

        local:30/allreduce/sparseloco

    The paper also tries outer rates below 1, `diloco:30,outer_lr=0.8,outer_momentum=0`. Its inner optimizer is AdamW.
    The authors' code (github.com/tplr-ai/templar) multiplies Δ by the outer rate before feedback, which is the same,
    has chunks of 64 × 64 of a matrix, and four levels for all values of a tensor: the means of four bins, each of 1.5
    standard deviations. Here a chunk has its own: the least and the largest magnitude, with their signs.

    An element waits 1/ratio rounds in the mean, so a run of fewer rounds than that sends some of them never: take a
    larger share then, as in `sparseloco:0.125`, and smaller chunks, whose indices are shorter, as in
    `sparseloco:0.5,chunk=256`. In a run of few rounds the leftover is no momentum yet either: on the study's text,
    with 25 rounds of 32 steps, no share of up to a half (1/100 of DDP's bytes) is better than DiLoCo with an outer
    momentum and int4+ef (1/248) beyond the noise, which with AdamW inside both they equal at an outer rate of 1.5
    (2.182 and 2.185), and with SGD inside lose by 4 %. With rounds of 8 steps, `local:8/allreduce/` and a share of
    0.1 in chunks of 256, they equal DiLoCo's best (2.163 and 2.160) at 1/112, and at an outer rate of 1.25 are 2 %
    better (2.094 and 2.138, three seeds); at as many bytes, with rounds of 14 steps, DiLoCo with int4+ef is better by
    1 % (one seed).

    Attributes:
        ratio: of the elements of a chunk that are sent.
        chunk: elements that are ranked together.
        decay: what stays of the leftover.
        values: in how many bits; see `blocktopk`.
    """

    name: ClassVar[str] = "sparseloco"
    title: ClassVar[str] = "largest of every chunk in two bits with decaying feedback, for local rounds"
    paper: ClassVar[str] = "Sarfi et al. 2025, SparseLoCo, arXiv:2508.15706, Algorithm 1"
    promise: ClassVar[str] = (
        "Better than DiLoCo with int4 and feedback, at 1 to 3 % of the elements in 2 bits (Sarfi et al. "
        "2025)."
    )
    seen: ClassVar[str] = (
        "Seen with rounds of 8 steps, at a hundredth of DDP's bytes; with rounds of 32 there are too few of"
        " them here for so little."
    )

    ratio: float = 0.015625
    chunk: int = 4096
    decay: float = 0.95
    values: str = "int2"

    @property
    def expression(self) -> str:  # noqa: D102
        return f"blocktopk:{self.ratio},block={self.chunk},values={self.values}+ef:{self.decay}"


@final
@dataclass(frozen=True)
class DiLoCoX(Recipe):
    """What DiLoCoX sends of a pseudo-gradient: low-rank factors in four bits, with feedback.

    For DiLoCo whose outer step comes one round late, behind the next round's steps:

        diloco:125,overlap=125/allreduce/dilocox

    The paper also lowers the rank, and lengthens rounds, as the rank of Δ that it measures falls; here both stay.
    Written from the paper's abstract and from memory. It reports 357 times the throughput of plain all-reduce for a 107
    B model over 1 Gb/s, without loss of quality.

    Attributes:
        rank: columns of the factors.
        values: `int4`, `int8` or `full`.
    """

    name: ClassVar[str] = "dilocox"
    title: ClassVar[str] = "low-rank factors in few bits, with feedback, for late rounds"
    paper: ClassVar[str] = "Qi et al. 2025, DiLoCoX, arXiv:2506.21263, algorithms 1 and 2"
    promise: ClassVar[str] = (
        "DiLoCo of 107 billion parameters over 1 Gb/s, 357 times as fast as all-reduce, at little loss (Qi "
        "et al. 2025)."
    )
    seen: ClassVar[str] = "Seen: no worse than late DiLoCo without compression."

    rank: int = 16
    values: str = "int4"

    @property
    def expression(self) -> str:  # noqa: D102
        return f"powersgd:{self.rank},factors={self.values}+ef"
