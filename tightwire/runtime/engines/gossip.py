"""Gossip: workers step alone, and mix their parameters with a few neighbours'."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS

from tightwire.architecture.gossip import Gossip, Graph
from tightwire.architecture.gossip.neighbours import Likeness, Lost, Neighbours
from tightwire.architecture.gossip.rates import measure_rates, probed_bytes
from tightwire.architecture.gossip.survivors import Survivors
from tightwire.architecture.round import Round
from tightwire.buckets import Bucket
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.agreement import require_agreement
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.memory import drop_unless_finite, require_one_copy
from tightwire.runtime.slots import GossipBucket, build_slots
from tightwire.runtime.talk import TalkThread
from tightwire.transport import Transport


class GossipEngine(BaseEngine):
    """After a round's last optimizer step, parameters are mixed with those of the round's neighbours.

    Gradients stay local, so replicas differ while training and only `flush` makes them equal: the exact mean of all.
    A worker with a NaN or Inf in its gradients or parameters drops that step by itself, before anybody hears of it.
    Workers that died are done without: their neighbours say so, take their weight themselves and go on. So they do,
    until all meet, without a worker that flushes after fewer rounds than they make. Where members are elastic, all that
    live begin another world instead, over the graph of so many workers, from the exact mean of those who trained.

    Contract: every rank saves, loads and evaluates after the same round.
    """

    survives = True
    calls_rolls = False

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._sync, self._context, self._parameters = plan.sync, context, parameters
        self._lost = Lost(ends_round=context.membership.is_elastic)
        self._has_trained = True
        self._standing = Likeness(words=self._words)
        self._channel = channel = context.transport.channel()
        architecture = plan.architecture
        _require_no_scaler(plan, context)
        require_one_copy(context.optimizers.members, str(plan.architecture), "choose bsp")
        assert isinstance(architecture, Gossip), architecture
        if architecture.way.slow and context.outer is not None:
            raise AttachError(
                f"{architecture} makes its own outer step, and attach was given another: leave out outer=, and write "
                "its rate and momentum in the plan, as in diloco:64,outer_lr=0.7,outer_momentum=0.9."
            )
        measures = architecture.follows_rates and channel.size > 1
        self._probed_bytes = probed_bytes(channel.size) if measures else 0
        if measures:
            graph = architecture.along(measure_rates(channel))
        elif context.membership.is_elastic:
            graph = architecture.over_any(channel.size)
        else:
            graph = architecture.over(channel.size)
        _agree_on(graph, channel)
        self._slots = build_slots(
            parameters,
            plan,
            context,
            lambda number: Neighbours(graph, channel, self._lost, tag=number, standing=self._standing),
        )
        self._survivors = Survivors(context.transport.channel(), self._lost)
        self._thread = TalkThread("tightwire-gossip", self._awaited, context.transport, self._look)
        self._meetings = context.membership.meetings  # not those of a graph before, which announced others
        self._rounds_before = 0
        self._spared = 0  # rounds still to come here that the mean with which all began stands for

    @property
    def planned_bytes(self) -> int:  # type: ignore[override]
        """Payload bytes of messages with headers, final means with the roll before them, and measuring links."""
        told = sum(slot.mixer.neighbours.bytes_sent for slot in self._slots)
        return told + self._survivors.bytes_sent + self._probed_bytes

    @property
    def lost(self) -> frozenset[int]:
        """Workers that are gone, as far as this one knows."""
        return frozenset(self._lost.ranks)

    @property
    def flush_is_collective(self) -> bool:  # type: ignore[override]  # noqa: D102
        return not self._lost.ranks

    def before_step(self) -> None:  # noqa: D102
        self.skipped += drop_unless_finite(self._parameters.values())

    def more_gradients(self) -> None:  # noqa: D102
        self.before_step()

    def after_step(self, step: int) -> None:  # noqa: D102
        self.exposed_s = 0.0
        if step % self._sync.steps_per_round == 0 and self._spared:
            self._spared -= 1
        elif step % self._sync.steps_per_round == 0:
            began_s = time.perf_counter()
            self.rounds += 1
            self._round(self._now())
            self.exposed_s = time.perf_counter() - began_s

    def flush(self) -> None:
        """Makes replicas the exact mean of all that are left, and forgets what gossip remembered.

        A worker that comes here before the others rests until they do: neighbours make their rounds without it.
        """
        self._thread.wait()  # what was sent behind computation is there
        self._channel.announce(self._mark(self._now().number))
        for slot, mean in zip(self._slots, self._means(), strict=True):
            slot.half.flat.copy_(mean)
            slot.deliver()
            slot.mixer.restart(slot.anchor.flat)
        self._meetings += 1
        self._even_out()

    def _mark(self, rounds: int) -> int:
        """Returns the number by which a worker tells after which round it rests, until which meeting."""
        return (self._meetings + 1 << 32) + rounds

    def _look(self) -> None:
        """Stops waiting for those among the awaited that rest."""
        here = self._mark(self._now().number)
        for rank in self._awaited() - self._survivors.awaited - self._lost.ranks:
            announced = self._channel.announced(rank)
            if announced >> 32 == self._meetings + 1 and announced < here:
                self._lost.resting.add(rank)
                self._channel.give_up(rank)

    def _even_out(self) -> None:
        """Counts on from the same round on all ranks, over connections in which nothing is left of unequal ones."""
        if self._lost.ranks:
            return
        number = self._now().number
        told = [int.from_bytes(b, "little") for b in self._channel.exchange(number.to_bytes(8, "little"))]
        self._rounds_before += max(told) - number
        if len(set(told)) > 1:
            before, self._channel = self._channel, self._context.transport.channel()
            for slot in self._slots:
                slot.mixer.neighbours.move(self._channel)
            self._lost.resting.clear()
            before.close()

    def consensus(self) -> Mapping[str, Tensor]:
        """Returns the exact mean of all that are left; every worker's own parameters stay as they are."""
        means = zip(self._slots, self._means(), strict=True)
        return {n: v for slot, mean in means for n, v in Bucket(slot.anchor.layout, mean).views.items()}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        self._thread.wait()
        return self._state()

    def position(self) -> Position:
        """Says only whether it made rounds: neighbours may be a round apart, and nobody lacks another's outcome."""
        made = min(1, self._rounds_before + self.rounds)
        return Position(agreed=made, begun=made)

    def salvage(self) -> dict[str, Any]:  # noqa: D102
        return self._state() | {"has_trained": self._has_trained}

    def catch_up(
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Gives a newcomer what the source remembers; its parameters count nothing in the mean with which all begin."""
        return (dict(theirs) | {"has_trained": False} if is_new else dict(own)), frozenset()

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        self._has_trained = state["has_trained"]
        for name, kind, view in self._memory():
            kept = state["memory"].get(name, {}).get(kind)
            if kept is not None and kept.shape == view.shape:  # not what was kept of each neighbour
                view.copy_(kept)
        for slot in self._slots:
            slot.anchor.pack({name: state["anchors"][name] for name in slot.anchor.views})
        self._count_from(state["rounds"])

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Begins, as after a flush, from the exact mean of those who trained. Every member; blocks.

        Who had not come to a round that others were in does not make it: it would be their next one.
        """
        number = self._rounds_before + self.rounds
        told = self._channel.exchange(number.to_bytes(8, "little") + bytes([self._has_trained]))
        most = max(int.from_bytes(other[:8], "little") for other in told)
        self._spared = most - number
        self._count_from(most)
        trained = sum(other[8] for other in told)
        if not trained:  # the job begins
            self._has_trained = True
            return
        for slot in self._slots:
            if not slot.fill():
                slot.stay()
            if not self._has_trained:
                slot.half.flat.zero_()
        self._average([slot.half.flat for slot in self._slots])
        for slot in self._slots:
            if trained < len(told):
                slot.half.flat.mul_(len(told) / trained)
            slot.deliver()
            slot.mixer.restart(slot.anchor.flat)
        self._has_trained = True

    def _state(self) -> dict[str, Any]:
        memory: dict[str, dict[str, Tensor]] = {}
        for name, kind, view in self._memory():
            memory.setdefault(name, {})[kind] = view.clone()
        return {
            "rounds": self._rounds_before + self.rounds,
            "memory": memory,
            "anchors": {
                name: view.clone() for slot in self._slots for name, view in slot.anchor.views.items()
            },
            "push_weights": {name: slot.push_weight for slot in self._slots for name in slot.anchor.views},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what was remembered, and tells neighbours again what they were told behind computation.

        Raises:
            AttachError: memory of another model or method; nothing is taken up.
        """
        if "anchors" not in state:
            raise AttachError("this checkpoint is of no gossip; load it under the plan it was saved with.")
        self._thread.wait()
        views = {(name, kind): view for name, kind, view in self._memory()}
        given = {
            (name, kind): kept for name, kinds in state["memory"].items() for kind, kept in kinds.items()
        }
        wrong = {key[0] for key in {*views, *given} if _shape(views, key) != _shape(given, key)}
        if wrong:
            raise AttachError(
                f"the checkpoint's memory does not fit this model and plan: that of {', '.join(sorted(wrong)[:5])} "
                "differs; load it under the plan and the model it was saved with."
            )
        for key, view in views.items():
            view.copy_(given[key])
        for slot in self._slots:
            slot.anchor.pack({name: state["anchors"][name] for name in slot.anchor.views})
            slot.push_weight = min(state["push_weights"][name] for name in slot.anchor.views)
        self._count_from(state["rounds"])
        if state["rounds"]:
            self._prepare(self._now())

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Begins from the mean, as after a flush: what neighbours were told has no meaning among others."""
        self.resume_at(states[0]["rounds"])

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._count_from(rounds)
        for slot in self._slots:
            slot.fill()
            slot.deliver()
            slot.mixer.restart(slot.anchor.flat)

    def close(self) -> None:  # noqa: D102
        self._thread.close()
        self._channel.close()
        self._survivors.close()

    def _count_from(self, rounds: int) -> None:
        self._rounds_before = rounds - self.rounds

    def _now(self) -> Round:
        number = self._rounds_before + self.rounds
        return Round(number=number, seed=self._context.seed + number)

    def _round(self, now: Round) -> None:
        self._thread.wait()  # for what was prepared behind computation
        self._standing.digest = self._context.membership.standing().folded
        finite = [slot.fill() for slot in self._slots]
        if not all(finite):
            self.skipped += 1
            for slot in self._slots:
                slot.stay()
        for number, slot in enumerate(self._slots):
            self._do(f"mix bucket {number}", slot, lambda s: s.mixer.run(s.anchor.flat, s.half.flat, now))
        self._thread.wait()
        for slot in self._slots:
            slot.deliver()
        self._prepare(now)

    def _prepare(self, now: Round) -> None:
        for number, slot in enumerate(self._slots):
            if slot.mixer.starts_early:
                self._do(f"tell bucket {number}", slot, lambda s: s.mixer.prepare(s.anchor.flat, now))

    def _means(self) -> list[Tensor]:
        """Returns the exact means of present parameters, by slot, bit-identical on all ranks."""
        self._thread.wait()
        for slot in self._slots:
            slot.fill()
        means = [slot.half.flat for slot in self._slots]
        self._average(means)
        return means

    def _average(self, flats: Sequence[Tensor]) -> None:
        self._thread.submit(lambda: self._survivors.average(flats))
        self._thread.wait()

    def _do(self, what: str, slot: GossipBucket, call: Callable[[GossipBucket], None]) -> None:
        def traced() -> None:
            with self._context.tracer.span("communication", what):
                call(slot)

        self._thread.submit(traced)

    def _awaited(self) -> frozenset[int]:
        talking = [slot.mixer.neighbours.awaited for slot in self._slots]
        return frozenset().union(*talking, self._survivors.awaited)

    def _words(self) -> str:
        membership = self._context.membership
        return ", ".join(f"{k} {v}" for k, v in membership.describe(membership.standing()).items())

    def _memory(self) -> list[tuple[str, str, Tensor]]:
        return [entry for slot in self._slots for entry in slot.memory()]


def _shape(named: Mapping[tuple[str, str], Tensor], key: tuple[str, str]) -> object:
    return named[key].shape if key in named else None


def _require_no_scaler(plan: Plan, context: RunContext) -> None:
    """Makes sure that all workers make the same rounds.

    Raises:
        AttachError: a GradScaler, which drops steps on one rank alone.
    """
    if context.awaits_means:
        raise AttachError(
            f"a GradScaler drops a step where this rank's own gradients overflow, and under {plan} its neighbours "
            "would wait for that round; train in bfloat16 without a scaler, or choose bsp or a local method."
        )
    for member in context.optimizers.members:
        if isinstance(member, LBFGS):
            raise AttachError(
                f"LBFGS compares the gradients of one step with those of the step before, and {plan} mixes parameters "
                "in between; choose another optimizer, or bsp."
            )


def _agree_on(graph: Graph, transport: Transport) -> None:
    """Makes sure that all ranks drew the same graph: floats of different machines might lead to different ones."""
    edges = repr([graph.at(number).edges() for number in range(1, graph.period + 1)])
    require_agreement(transport, {"gossip graph": hashlib.sha256(edges.encode()).hexdigest()})
