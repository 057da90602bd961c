"""Gossip: a plan's answer "everybody with a few neighbours, and everybody in the long run"."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Answers, CompressionAnswer, Member, Refusal, text_with
from tightwire.architecture.allreduce.program import Program
from tightwire.architecture.architecture import Architecture
from tightwire.architecture.gossip.graphs import GRAPHS, Graph, bandwidth, build_graph, connected
from tightwire.architecture.gossip.methods import METHODS, Method
from tightwire.architecture.gossip.mixing import Mixing
from tightwire.architecture.gossip.rounds import round_program
from tightwire.architecture.gossip.stages import Choco, GossipStage
from tightwire.compression.codec import Codec
from tightwire.compression.stage import Stage
from tightwire.errors import PlanError, ProgramError
from tightwire.sync import Rounds

# Those that only say what shares a bucket.
SCHEDULES = ("sequential", "wfbp", "fusion")


@final
@dataclass(frozen=True)
class Gossip(Architecture):
    """Workers mix their parameters with a few neighbours'; gradients stay where they are.

    Replicas differ while they train; `run.finish()` makes them equal. A method's name alone, as in `gossip:sgp`,
    takes its default graph.

    Attributes:
        graph: along which; one of `GRAPHS`.
        method: by which steps, one of `METHODS`; compressed ones are compressions, as in `choco:topk=0.01`.
        base: for matcha, the graph that it activates parts of.
        budget: for matcha, the share of its matchings that a round activates, in (0, 1].
    """

    name: ClassVar[str] = "gossip"
    title: ClassVar[str] = "Parameters mixed with neighbours on a graph"
    paper: ClassVar[str] = (
        "Lian et al. 2017, arXiv:1705.09056; Ying et al. 2021, arXiv:2110.13363; Assran et al. 2019"
    )
    promise: ClassVar[str] = (
        "Linear speed-up once steps outnumber what the graph's gap asks for (Lian et al. 2017)."
    )
    seen: ClassVar[str] = "Seen: denser graphs need fewer steps than a ring, all nearly as few as all-reduce."
    variants: ClassVar[tuple[str, ...]] = (*GRAPHS, *METHODS)

    graph: str = "ring"
    method: str = "d-psgd"
    base: str = "expander"
    budget: float = 0.5

    def __post_init__(self) -> None:
        if self.graph in METHODS:
            object.__setattr__(self, "method", self.graph)
            object.__setattr__(self, "graph", METHODS[self.method].graph)
        if self.graph not in GRAPHS:
            raise PlanError(f"gossip:{self.graph} is no known graph; known: {', '.join(GRAPHS)}.")
        if self.method not in METHODS:
            raise PlanError(
                f"gossip has no method {self.method!r}; known: {', '.join(METHODS)}; compressed ones are "
                "compressions, as in bsp/gossip:exponential/choco:topk=0.01."
            )
        if self.base not in GRAPHS or not GRAPHS[self.base].carries_matcha:
            fit = ", ".join(name for name, graph in GRAPHS.items() if graph.carries_matcha)
            raise PlanError(f"matcha cannot activate parts of {self.base}; base is one of {fit}.")
        if not 0 < self.budget <= 1:
            raise PlanError(f"matcha cannot activate a share of {self.budget}: give a budget in (0, 1].")

    @property
    def way(self) -> Method:
        """The method's facts."""
        return METHODS[self.method]

    @property
    def agrees(self) -> bool:
        """Whether policies that begin rounds at a common model may use it: each worker's slow one stands for that."""
        return self.way.slow

    @property
    def asynchronous(self) -> bool:
        """Whether nobody waits, so that `asp` is legal."""
        return not self.way.waits

    @property
    def engine(self) -> str:
        """Gossip steps alone and mixes parameters, whatever the policy."""
        return "asynchronous gossip" if self.asynchronous else "gossip"

    def over(self, num_ranks: int) -> Graph:
        """Returns the graph over `num_ranks` workers, its matrices made lazy where the method asks for that.

        Raises:
            ProgramError: there is none for so many; names the nearest numbers.
        """
        graph, bound = build_graph(self.graph, num_ranks, self.base, self.budget), self.way.eigenvalues_above
        return graph if bound is None else graph.above(bound)

    def over_any(self, num_ranks: int) -> Graph:
        """Returns the graph over as many workers as there happen to be: where there is none, a ring; alone, no edge."""
        if num_ranks == 1:
            return Graph(self.graph, 1, 1, lambda index: Mixing.uniform(1, []))
        try:
            return self.over(num_ranks)
        except ProgramError:
            return dataclasses.replace(self, graph="ring").over(num_ranks)

    def along(self, rates: Sequence[Sequence[float]]) -> Graph:
        """Returns the graph over as many workers as `rates` has rows, drawn by what was measured between them.

        Args:
            rates: bytes per second between any two, the same on every rank.
        """
        return connected(bandwidth(len(rates), rates)) if self.follows_rates else self.over(len(rates))

    @property
    def follows_rates(self) -> bool:
        """Whether who mixes with whom depends on what links carry."""
        return self.graph == "bandwidth"

    def program(self, codec: Codec, num_ranks: int) -> Program:
        """Returns the program of the first round; see `program_at`."""
        return self.program_at(1, num_ranks)

    def program_at(self, round_number: int, num_ranks: int) -> Program:
        """Returns the program of a round, counted from 1; its weights are those of the mixing matrix."""
        return round_program(self.over(num_ranks).at(round_number), f"gossip:{self.graph}")

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses what has no meaning without a common mean, and what a method needs and the graph lacks."""
        return (
            self._wrong_graph(plan)
            or self._wrong_sync(plan)
            or self._wrong_compression(plan)
            or self._wrong_schedule(plan)
        )

    def _wrong_graph(self, plan: Answers) -> Refusal | None:
        graph, way = GRAPHS[self.graph], self.way
        if way.needs_static and not graph.is_static:
            return self._instead(plan, f"{self.method} needs the same neighbours in every round", way.graph)
        if way.needs_symmetric and not graph.is_symmetric:
            return self._instead(plan, f"{self.method} needs neighbours that hear each other", way.graph)
        stages = [s for s in plan.compression if isinstance(s, GossipStage)]
        if stages and self.method != "d-psgd":
            return Refusal(
                reason=f"{stages[0].name} has steps of its own, and {self.method} has others: one method at a time.",
                nearest=(
                    text_with(plan, architecture=str(dataclasses.replace(self, method="d-psgd"))),
                    text_with(plan, compression="none"),
                ),
            )
        if any(s.needs_static for s in stages) and not graph.is_static:
            return self._instead(
                plan,
                f"{stages[0].name} keeps replicas of its neighbours and needs the same in every round",
                "exponential",
            )
        return None

    def _instead(self, plan: Answers, why: str, graph: str) -> Refusal:
        nearest = str(dataclasses.replace(self, graph=graph))
        return Refusal(
            reason=f"{why}, and {self.graph} offers none such.",
            nearest=(text_with(plan, architecture=nearest),),
        )

    def _wrong_sync(self, plan: Answers) -> Refusal | None:
        """Refuses what the policies themselves let pass: those that need a common mean speak for themselves."""
        sync = plan.sync
        local = sync if isinstance(sync, Rounds) else None
        if self.way.slow and not _has_outer_step(sync):
            return Refusal(
                reason=f"{self.method} is about the outer step after local ones, and {sync} has none to average.",
                nearest=(
                    text_with(plan, sync="diloco:64"),
                    text_with(plan, architecture=f"gossip:{self.graph}"),
                ),
            )
        if self.asynchronous and not sync.is_served:
            return Refusal(
                reason=f"{self.method} averages behind computation and waits for nobody, and {sync} waits.",
                nearest=(text_with(plan, sync="asp"), text_with(plan, architecture=f"gossip:{self.graph}")),
            )
        if sync.is_served and str(sync) != sync.name:
            return Refusal(
                reason=f"{sync} tells a server what to do with stale gradients, and in gossip none are sent.",
                nearest=(text_with(plan, sync=sync.name), text_with(plan, architecture="ps")),
            )
        if local is not None and (local.steps_late or local.optimizer_state != "kept"):
            return Refusal(
                reason=f"{sync} asks for more than gossip does: it sends parameters alone, and waits for neighbours.",
                nearest=(
                    text_with(
                        plan,
                        sync=f"{'diloco' if self.way.slow else 'local'}:{local.steps_per_round}",
                    ),
                    text_with(plan, architecture="allreduce"),
                ),
            )
        return None

    def _wrong_schedule(self, plan: Answers) -> Refusal | None:
        if plan.schedule.name in SCHEDULES:
            return None
        return Refusal(
            reason=f"{plan.schedule} orders what a backward pass hands over little by little, and gossip sends "
            "parameters, all ready at once.",
            nearest=tuple(text_with(plan, schedule=schedule) for schedule in ("fusion", "sequential")),
        )

    def _wrong_compression(self, plan: Answers) -> Refusal | None:
        sender, *stages = plan.compression
        if not isinstance(sender, Codec):
            return None  # it says so itself
        if strange := [stage for stage in stages if _changes_values(stage)]:
            kept = [stage for stage in stages if stage not in strange]
            return _with_stages(
                plan,
                f"{strange[0]} is about gradients on their way to a mean, and gossip sends parameters",
                kept,
            )
        if sender.lossless or any(isinstance(stage, GossipStage) for stage in stages):
            return None
        return _with_stages(
            plan, f"{sender} alone would lose a part of the parameters in every round", [Choco(), *stages]
        )


def _has_outer_step(sync: Member) -> bool:
    """Whether rounds end in a step of their own, with a rate and a momentum, and with nothing else."""
    if not isinstance(sync, Rounds):
        return False
    return not (sync.outer.is_mean or sync.outer.in_steps or sync.elastic)


def _changes_values(stage: Member) -> bool:
    """Whether a stage does something to what is sent, beyond choosing when and which tensors are compressed."""
    return (
        isinstance(stage, Stage)
        and not isinstance(stage, GossipStage)
        and type(stage).memory is not Stage.memory
    )


def _with_stages(plan: Answers, why: str, stages: list[CompressionAnswer]) -> Refusal:
    texts = [str(plan.compression[0]), *map(str, stages)]
    return Refusal(reason=f"{why}.", nearest=(text_with(plan, compression="+".join(texts)),))
