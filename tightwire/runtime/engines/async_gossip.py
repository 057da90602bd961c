"""Asynchronous gossip: averaging with one neighbour at a time, behind computation; nobody waits for a step."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.gossip import Gossip
from tightwire.architecture.gossip.neighbours import Lost
from tightwire.architecture.gossip.pairs import Pairs, Shared
from tightwire.architecture.gossip.survivors import Survivors
from tightwire.buckets import Bucket
from tightwire.compression.checks import is_finite
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.memory import drop_unless_finite
from tightwire.runtime.slots import cut
from tightwire.runtime.talk import TalkThread


class AsyncGossipEngine(BaseEngine):
    """After a step the worker asks a neighbour, drawn at random, to average, and computes on; it answers whoever asks.

    What an optimizer's step changed is added to the worker's shared model, which averaging changes at any time; the
    next step begins from a copy of it (Lian et al. 2018, arXiv:1710.06952, algorithm 1). The asking side does not
    freeze its model until the answer is there, as the paper's does: see `Pairs`. A step asks only if the last answer is
    there, so that on a slow wire there are fewer rounds than steps.

    A worker that died is no longer asked. A step with a NaN or Inf is dropped by the worker that made it. Where members
    are elastic, all that live begin another world instead, from the exact mean of those who trained, as under gossip in
    rounds.

    Contract: workers need not make the same number of steps; every rank flushes.
    """

    survives = True
    calls_rolls = False

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._context, self._parameters = context, parameters
        transport = context.transport
        is_elastic = context.membership.is_elastic
        self._lost = Lost(ends_round=is_elastic)
        self._has_trained = True
        layouts = [layout for layout, _ in cut(parameters, plan, context)]
        self._here = [Bucket(layout) for layout in layouts]
        self._read = [Bucket(layout) for layout in layouts]
        self._shared = Shared([bucket.flat for bucket in self._here])
        self._channel = transport.channel()
        assert isinstance(plan.architecture, Gossip), plan.architecture
        graph = plan.architecture.over_any if is_elastic else plan.architecture.over
        neighbours = graph(transport.size).neighbours(transport.rank)
        self._pairs = Pairs(self._channel, self._shared, neighbours, self._lost)
        self._survivors = Survivors(transport.channel(), self._lost)
        self._thread = TalkThread("tightwire-asks", self._awaited, transport)
        self._random = random.Random(f"{context.seed}/{transport.rank}")
        self._rounds_before = 0
        self._take_up()

    @property
    def planned_bytes(self) -> int:  # type: ignore[override]
        """Payload bytes of requests and answers, last words, rolls and final means."""
        return self._pairs.bytes_sent + self._survivors.bytes_sent

    @property
    def flush_is_collective(self) -> bool:  # type: ignore[override]  # noqa: D102
        return not self._lost.ranks

    def before_step(self) -> None:  # noqa: D102
        self.skipped += drop_unless_finite(self._parameters.values())

    def more_gradients(self) -> None:  # noqa: D102
        self.before_step()

    def after_step(self, step: int) -> None:  # noqa: D102
        self._pairs.check()
        self._share_step()
        self._pairs.start()
        if self._thread.is_idle():
            self._ask()

    def flush(self) -> None:
        """Answers until no neighbour asks any more; then makes all models the exact mean, bit for bit."""
        for bucket, mean in zip(self._here, self._quiet_means(), strict=True):
            bucket.flat.copy_(mean)
        self._continue_from_shared()

    def consensus(self) -> Mapping[str, Tensor]:
        """Returns the exact mean of all that are left; answers until no neighbour asks any more."""
        means = zip(self._here, self._quiet_means(), strict=True)
        return {n: v for bucket, mean in means for n, v in Bucket(bucket.layout, mean).views.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the count of rounds: the model itself is all there is. Averages under way are not waited for."""
        return {"rounds": self._rounds_before + self.rounds, "memory": {}, "anchors": {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the count of rounds.

        Raises:
            AttachError: a checkpoint of a method that remembers something.
        """
        if state["memory"]:
            raise AttachError(
                "the checkpoint remembers what ad-psgd has no use for; load it under its own plan."
            )
        self.resume_at(state["rounds"])

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._rounds_before = rounds - self.rounds
        with self._shared.lock:
            self._take_up()

    def position(self) -> Position:
        """Says only whether it made rounds, which are each pair's own."""
        made = min(1, self._rounds_before + self.rounds)
        return Position(agreed=made, begun=made)

    def salvage(self) -> dict[str, Any]:
        """Keeps what averaging changed since the last step, and the step under way."""
        self._share_step()
        return self.state_dict() | {"has_trained": self._has_trained}

    def catch_up(
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Gives a newcomer the count; its parameters count nothing in the mean with which all begin."""
        return (dict(theirs) | {"has_trained": False} if is_new else dict(own)), frozenset()

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        self._has_trained = state["has_trained"]
        self.resume_at(state["rounds"])

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Begins, as after a flush, from the exact mean of those who trained. Every member; blocks."""
        trained = sum(told[0] for told in self._channel.exchange(bytes([self._has_trained])))
        others = self._context.transport.size - trained
        if trained and others and not self._has_trained:
            for bucket in self._here:
                bucket.flat.zero_()
        if trained:  # else the job begins
            for bucket, mean in zip(self._here, self._means(), strict=True):
                bucket.flat.copy_(mean if not others else mean * ((trained + others) / trained))
            self._continue_from_shared()
        self._has_trained = True

    def close(self) -> None:
        """Leaves what is under way to the transport: it ends when its channel does."""
        self._thread.close()
        self._channel.close()
        self._survivors.close()

    def _ask(self) -> None:
        if not (living := self._pairs.living):
            return
        rank = self._random.choice(living)
        self.rounds += 1

        def ask() -> None:
            with self._context.tracer.span("communication", f"average with rank {rank}"):
                self._pairs.ask(rank)

        self._thread.submit(ask)

    def _share_step(self) -> None:
        """Adds what the step changed to the shared model, and goes on from that."""
        changes = [Bucket(bucket.layout) for bucket in self._read]
        for change, read in zip(changes, self._read, strict=True):
            change.pack({name: self._parameters[name].detach() for name in change.views})
            change.flat.sub_(read.flat)
        if all(is_finite(change.flat) for change in changes):
            with self._shared.lock:
                for here, change in zip(self._here, changes, strict=True):
                    here.flat.add_(change.flat)
        else:
            self.skipped += 1
        self._continue_from_shared()

    def _continue_from_shared(self) -> None:
        with self._shared.lock:
            for here, read in zip(self._here, self._read, strict=True):
                read.flat.copy_(here.flat)
        for read in self._read:
            read.unpack({name: self._parameters[name].detach() for name in read.views})

    def _take_up(self) -> None:
        for here, read in zip(self._here, self._read, strict=True):
            here.pack({name: self._parameters[name].detach() for name in here.views})
            read.flat.copy_(here.flat)

    def _quiet_means(self) -> list[Tensor]:
        """Ends averaging, and returns the exact means of shared models, by bucket, bit-identical on all ranks."""
        self._thread.wait()
        self._thread.submit(self._pairs.stop)
        self._thread.wait()
        return self._means()

    def _means(self) -> list[Tensor]:
        """Returns the exact means of shared models while nobody asks any more, by bucket."""
        means = [bucket.flat.clone() for bucket in self._here]
        self._thread.submit(lambda: self._survivors.average(means))
        self._thread.wait()
        return means

    def _awaited(self) -> frozenset[int]:
        return self._pairs.awaited | self._survivors.awaited
