"""All-reduce as an answer to "who talks to whom": which program carries which codec, bucket by bucket."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from tightwire.answers import Answers, Refusal, text_with
from tightwire.architecture.allreduce.accuracy import error_by_name
from tightwire.architecture.allreduce.builders import PROGRAMS, Shape, balanced, build, uneven_hierarchical
from tightwire.architecture.allreduce.builders.synthesis import synthesise
from tightwire.architecture.allreduce.program import Program
from tightwire.architecture.allreduce.switched import SWITCHED
from tightwire.architecture.allreduce.traffic import predict_bytes
from tightwire.architecture.architecture import Architecture, Setting
from tightwire.compression.casts import Identity
from tightwire.compression.codec import Codec
from tightwire.errors import PlanError, ProgramError
from tightwire.transport.striped import Striped
from tightwire.transport.switched import Switch, connect

if TYPE_CHECKING:
    from tightwire.transport.base import Transport

GATHERING = ("allgather",)
LEVELLED = ("hierarchical",)
MADE = "synthesised"
# Where nothing was measured: up to here a message costs its latency, and recursive doubling has the fewest.
SMALL_BYTES = 32 * 1024
MAX_STREAMS = 16
LARGE_NUMEL = 1 << 20
# A squared error of the mean, relative to it, that no optimizer notices: gradients of samples differ by far more.
NEGLIGIBLE = 1e-3
# Above this many ranks, programs are too large to be built only to be compared.
MAX_COMPARED = 64


@dataclass(frozen=True)
class AllReduce(Architecture):
    """Everybody averages with everybody.

    `auto` decides bucket by bucket, by size and by what was measured of the programs that can carry the codec, and
    without measurements: recursive doubling for small exact buckets, else the backend's own for what it can sum.
    Messages that have no sum are gathered; where that would send more bytes than an exact all-reduce of their values,
    the values travel (SparCML, 1802.08021). A lossy codec whose messages combine goes by the program that keeps its
    error: a ring where encoding n times loses next to nothing, else `direct`, which encodes twice in a ring's bytes,
    and an unbiased codec whose noise would then exceed the gradient by all-gather, as far as that sends less than
    values would.

    `synthesised` is made for the cluster's own links, as a plan file tells them.

    `in-network` leaves the addition to a switch that the launcher tells of (SwitchML, 1903.06701; ATP, NSDI 2021):
    of values as they are, rounded to integers of a step that all share, or of `int8`.

    `hierarchical` takes its nodes from the launcher unless it has a shape; compression then applies across nodes
    alone: inside them values travel as they are.

    Attributes:
        by: how; the name of one of `PROGRAMS`, `auto` or `in-network`.
        shape: of programs that see the ranks as a box: its sides joined by x, the last one counting neighbours in
            rank; by default nearly square, or the launcher's nodes.
        streams: connections between every two ranks, used in turn.
        balanced: of `hierarchical`, whether parts of a bucket choose which level comes first, so that both are busy.
        order: the ranks in the order in which the program counts them, joined by -; by default as they are.
    """

    name: ClassVar[str] = "allreduce"
    title: ClassVar[str] = "All-reduce by a program"
    paper: ClassVar[str] = "Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan 2009"
    promise: ClassVar[str] = "Exact, by 2(n − 1)/n of the gradients' size a worker (Patarasuk and Yuan 2009)."
    seen: ClassVar[str] = "Seen: bytes are counted."
    variants: ClassVar[tuple[str, ...]] = (*PROGRAMS, SWITCHED)

    by: str = "auto"
    shape: str = ""
    streams: int = 1
    order: str = ""
    balanced: bool = False

    def __post_init__(self) -> None:
        of_its_own = self.by in ("auto", SWITCHED)
        if not of_its_own and self.by not in PROGRAMS:
            known = ", ".join(("auto", *sorted((SWITCHED, *PROGRAMS))))
            raise PlanError(f"allreduce:{self.by} is no known program; known: {known}.")
        if not re.fullmatch(r"(\d+(x\d+)+)?", self.shape):
            raise PlanError(
                f"shape={self.shape} is no shape; write its sides joined by x, for example shape=2x4."
            )
        if self.shape and (of_its_own or PROGRAMS[self.by].default_shape is None):
            shaped = ", ".join(name for name, recipe in PROGRAMS.items() if recipe.default_shape)
            raise PlanError(
                f"allreduce:{self.by} has no shape, and {self.shape} was asked for; {shaped} have one."
            )
        if not 1 <= self.streams <= MAX_STREAMS:
            raise PlanError(
                f"streams={self.streams} is outside 1…{MAX_STREAMS} connections between two ranks."
            )
        if self.is_switched and self.streams != 1:
            raise PlanError(
                f"allreduce:{SWITCHED} has one line to the switch; leave out streams={self.streams}."
            )
        if self.balanced and (self.by not in LEVELLED or self.shape.count("x") > 1):
            raise PlanError(
                f"allreduce:{self.by} cannot be balanced: hierarchical of two levels can, as in "
                "allreduce:hierarchical,balanced=true."
            )
        ranks = self._order()
        if sorted(ranks) != list(range(len(ranks))) or (ranks and self.by in ("auto", "native", SWITCHED)):
            raise PlanError(
                f"order={self.order}: write every rank once, joined by -, such as 0-2-1-3, for a program of our own."
            )

    @property
    def has_halves(self) -> bool:
        """Whether it is a ring, or becomes one, whose halves may be moved apart."""
        return self.by in ("auto", "ring")

    @property
    def is_levelled(self) -> bool:
        """Whether it must know who sits with whom."""
        return self.by in LEVELLED

    @property
    def is_made(self) -> bool:
        """Whether it is made for the links that there are, and must be told them."""
        return self.by == MADE

    @property
    def is_switched(self) -> bool:
        """Whether a switch adds, and must be told."""
        return self.by == SWITCHED

    def program_name(self, codec: Codec, num_ranks: int, numel: int = LARGE_NUMEL, itemsize: int = 4) -> str:
        """Returns the program that carries a bucket of `codec`: the one asked for, or what `auto` stands for."""
        if self.by != "auto":
            return self.by
        if codec.combine == "none":
            return "allgather"
        if codec.lossless and codec.sums_as == "":
            return "native"
        if codec.combine == "exact" or num_ranks <= 2 or numel == 0:
            return "ring"
        if error_by_name("ring", codec, numel, num_ranks) <= NEGLIGIBLE:
            return "ring"
        is_noisy = codec.contraction(numel) is None and error_by_name("direct", codec, numel, num_ranks) > 1
        return "allgather" if is_noisy and _gathers_less(codec, numel, itemsize, num_ranks) else "direct"

    def program(self, codec: Codec, num_ranks: int) -> Program:  # noqa: D102
        if self.is_switched:
            return self._built("native", num_ranks, ())  # what the hosts fall back on
        return self._ordered(self._built(self.program_name(codec, num_ranks), num_ranks, self._shape()))

    def program_for(self, codec: Codec, numel: int, itemsize: int, setting: Setting) -> Program:  # noqa: D102
        if self.is_levelled and (self.balanced or not self.shape) and setting.num_ranks > 1:
            return self._ordered(self._of_nodes(setting))
        if self.is_made and setting.num_ranks > 1:
            return self._ordered(self._made(setting))
        if self.by != "auto":
            return self.program(codec, setting.num_ranks)
        return build(self.choose(codec, numel, itemsize, setting), setting.num_ranks)

    def choose(self, codec: Codec, numel: int, itemsize: int, setting: Setting) -> str:
        """Returns the name of the program for one bucket: what was asked for, or the fastest that is known."""
        n = setting.num_ranks
        automatic = self.program_name(codec, n, numel, itemsize)
        if self.by != "auto" or automatic in GATHERING or n == 1:
            return automatic
        names = [name for name in setting.costs if name in PROGRAMS and _may_carry(name, codec)]
        if not codec.lossless and n <= MAX_COMPARED:
            most = max(NEGLIGIBLE, 1.1 * error_by_name(automatic, codec, numel, n))
            names = [name for name in names if error_by_name(name, codec, numel, n) <= most]

        def seconds(name: str) -> float:
            alpha_s, beta_s = setting.costs[name]
            return alpha_s + beta_s * _sent_bytes(name, codec, numel, itemsize, n)

        if automatic in names and n <= MAX_COMPARED:
            return min(names, key=seconds)
        small = codec.lossless and numel * itemsize <= SMALL_BYTES
        return "recursive-doubling" if small else automatic

    def travels_decoded(self, codec: Codec, numel: int, itemsize: int, num_ranks: int) -> bool:
        """Whether `auto` sends the values that messages stand for, because gathering the messages would send more."""
        if self.by != "auto" or codec.combine != "none" or num_ranks == 1 or numel == 0:
            return False
        return not _gathers_less(codec, numel, itemsize, num_ranks)

    @property
    def needs_nodes(self) -> bool:
        """Not where a shape tells them, which gives way to a plain program; see `fitted`."""
        return self.is_levelled and not self.shape

    def fitted(self, num_ranks: int) -> AllReduce:
        """Becomes a plain one where a shape or an order is for other numbers of members: no whole nodes are there."""
        sides = [self._shape()] if self.shape else []
        fits = all(math.prod(shape) == num_ranks for shape in sides)
        if fits and len(self._order()) in (0, num_ranks):
            return self
        return replace(self, by="auto", shape="", order="", balanced=False)

    def connect(self, transport: Transport, setting: Setting) -> Transport:  # noqa: D102
        if self.is_switched and transport.size > 1:
            return connect(transport, self.require_switch(setting.switch))
        if self.streams == 1:
            return transport.channel()
        return Striped([transport.channel() for _ in range(self.streams)])

    def require_switch(self, switch: Switch | None) -> Switch:
        """Returns the switch that adds.

        Raises:
            PlanError: there is none.
        """
        if switch is None:
            raise PlanError(
                f"{self} needs a switch that adds, and no launcher told of one (TIGHTWIRE_SWITCH=host:port,slots=64,"
                "slot=64KiB): in the lab, tightwire lab run --switch adds,slots=64,slot=64KiB …; or take allreduce."
            )
        return switch

    def nodes(self, setting: Setting) -> list[list[int]]:
        """Returns the ranks of each node: by the shape's last side, or by what the setting knows.

        Raises:
            PlanError: nobody told who sits with whom, or a shape for other numbers of ranks.
        """
        n = setting.num_ranks
        if self.shape:
            return _in_groups(self.program(Identity(), n).num_ranks, self._shape()[-1])
        if setting.workers_per_node == 0:
            raise PlanError(
                f"{self} must know which workers share a node, and no launcher told (LOCAL_WORLD_SIZE): start with "
                f"torchrun, or write a shape, such as allreduce:{self.by},shape=2x{max(1, n // 2)}."
            )
        return _in_groups(n, setting.workers_per_node)

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a program that cannot carry the codec's messages."""
        codec = plan.compression[0]
        if self.balanced and not (isinstance(codec, Codec) and codec.lossless):
            return _refuse(
                plan,
                f"{codec} cannot travel by balanced parts: compression applies across nodes, where some begin.",
                "allreduce:hierarchical",
            )
        if self.is_switched:
            return self._unsummable(plan, codec)
        if self.by in ("auto", *GATHERING, *LEVELLED) or not isinstance(codec, Codec):
            return None
        if codec.combine == "none":
            return _refuse(plan, f"{codec} cannot travel by {self.by}: its messages have no elementwise sum.")
        if self.by == "native" and codec.sums_as is None:
            return _refuse(
                plan, f"{codec} cannot travel by native: no backend sums its messages.", "allreduce:ring"
            )
        return None

    def _unsummable(self, plan: Answers, codec: object) -> Refusal | None:
        if not isinstance(codec, Codec) or codec.shared_levels(2) is not None:
            return None
        return Refusal(
            reason=f"{codec} cannot travel by {SWITCHED}: a switch adds integers of a step that all workers share, and "
            "its messages are none.",
            nearest=(text_with(plan, compression="none"), text_with(plan, architecture="allreduce")),
        )

    def _shape(self) -> Shape:
        return tuple(map(int, self.shape.split("x"))) if self.shape else ()

    def _order(self) -> list[int]:
        ranks = self.order.split("-") if self.order else []
        return [int(rank) for rank in ranks] if all(map(str.isdigit, ranks)) else [-1]

    def _built(self, name: str, num_ranks: int, shape: Shape) -> Program:
        try:
            return build(name, num_ranks, shape)
        except ProgramError as error:
            raise PlanError(f"{self}: {error}") from None

    def _of_nodes(self, setting: Setting) -> Program:
        nodes = self.nodes(setting)
        if self.balanced:
            return self._balanced(nodes, setting)
        if len(nodes[-1]) == len(nodes[0]):
            return self._built(self.by, setting.num_ranks, (len(nodes), len(nodes[0])))
        return uneven_hierarchical(nodes)

    def _balanced(self, nodes: list[list[int]], setting: Setting) -> Program:
        if len(nodes[-1]) != len(nodes[0]):
            raise PlanError(
                f"{self} needs nodes of equal size, and they have {', '.join(str(len(x)) for x in nodes)}."
            )
        speeds = (1.0, 1.0)
        if setting.wiring is not None and len(nodes) > 1 and len(nodes[0]) > 1:
            rates = [
                min(setting.wiring.rates[i] for i in setting.wiring.route(0, peer))
                for peer in (nodes[1][0], 1)
            ]
            speeds = (rates[0], rates[1])
        return balanced(setting.num_ranks, (len(nodes), len(nodes[0])), speeds)

    def _made(self, setting: Setting) -> Program:
        wiring = setting.wiring
        if wiring is None:
            raise PlanError(
                f"{self} is made for the links between the workers, and nobody told them: attach a plan file that "
                "`tightwire plan --cluster FILE --out FILE` wrote, of a cluster with levels or a graph."
            )
        if wiring.num_ranks != setting.num_ranks:
            raise PlanError(
                f"{self}: the cluster that was told has {wiring.num_ranks} workers, and there are {setting.num_ranks}."
            )
        return synthesise(wiring).program

    def _ordered(self, program: Program) -> Program:
        order = self._order()
        if not order:
            return program
        if len(order) != program.num_ranks:
            raise PlanError(f"order={self.order} has {len(order)} ranks, and there are {program.num_ranks}.")
        renamed = (replace(t, src=order[t.src], dst=order[t.dst]) for t in program.transfers)
        if program.gathers:  # chunk r is rank r's message
            renamed = (replace(t, chunk=order[t.chunk]) for t in renamed)
        return replace(program, transfers=tuple(renamed))


def _in_groups(num_ranks: int, size: int) -> list[list[int]]:
    return [list(range(first, min(first + size, num_ranks))) for first in range(0, num_ranks, size)]


def _gathers_less(codec: Codec, numel: int, itemsize: int, num_ranks: int) -> bool:
    """Whether gathering messages sends no more than an exact all-reduce of the values."""
    gathered = (num_ranks - 1) * codec.wire_bytes(numel, itemsize)
    return gathered <= 2 * (num_ranks - 1) * numel * itemsize // num_ranks


def _may_carry(name: str, codec: Codec) -> bool:
    """Whether `auto` would let a program carry a codec that combines: doubling encodes lossy sums again and again."""
    if name in GATHERING or PROGRAMS[name].default_shape:
        return False
    if name == "native":
        return codec.lossless and codec.sums_as == ""
    return codec.lossless or name not in ("recursive-doubling", "tree", "double-tree")


@lru_cache(maxsize=65536)
def _sent_bytes(name: str, codec: Codec, numel: int, itemsize: int, num_ranks: int) -> int:
    """Returns what the busiest rank sends, the first of several: what measured costs are per byte of."""
    program = build(name, num_ranks)
    busiest = max(range(num_ranks), key=lambda rank: len(program.sends(rank)))
    return predict_bytes(program, codec, numel, itemsize, busiest)


def _refuse(plan: Answers, reason: str, nearest: str = "allreduce:allgather") -> Refusal:
    return Refusal(reason=reason, nearest=(text_with(plan, architecture=nearest),))
