"""How workers and servers go on when members of an elastic job change: shards are shared out anew."""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.server.parameter_server import Roles
from tightwire.architecture.server.shard import Shard
from tightwire.errors import PeerError
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.holdings import Deal, Holding, hand_round, make_deal
from tightwire.runtime.engines.memory import Named, fitting, load_memory, memory
from tightwire.runtime.engines.server_share import Share

log = logging.getLogger("tightwire")

# Of so many steps, elastic workers fetch what a server's optimizer remembers once: no death costs it more updates.
REPLICA_STEPS = 16


@dataclass(frozen=True)
class UnderWay:
    """A gradient that servers have not answered: of which step, and by name; None where it was not finite."""

    clock: int
    gradients: Mapping[str, Tensor | None] | None


@dataclass(frozen=True, kw_only=True)
class Salvaged:
    """What a worker or server goes on with in another world."""

    rounds: int = 0
    memory: Named | None = None
    holdings: Sequence[Holding] = ()
    under_way: UnderWay | None = None
    is_stepped: bool = False


class ServedMember(BaseEngine, abc.ABC):
    """The part of the engine of servers that survives; `ServerEngine` is the whole.

    The loss of a member ends all waits. In the next world shards are shared out anew: values are those of living
    servers, or else what workers heard last; what the optimizer remembers comes from them or from the replica that a
    worker keeps, at most `REPLICA_STEPS` of its steps old. Under bsp a round that is in the values of some shards is
    made up for in the others by those who took part, and one that is in none is begun anew. Under asp and ssp a
    gradient under way counts in the shards that had taken it.
    """

    survives = True
    calls_rolls = False

    def __init__(
        self, context: RunContext, roles: Roles, trained: dict[str, Parameter], *, in_rounds: bool
    ) -> None:
        """Has nothing yet.

        Args:
            context: over the members.
            roles: of each.
            trained: parameters that servers step, by name.
            in_rounds: whether the gradients of one round make one update.
        """
        self._context, self._roles, self._rank = context, roles, context.transport.rank
        self._in_rounds = in_rounds
        self._clock = 0
        self._is_clean = True
        # Until all have what they go on with.
        self._taken: Salvaged | None = Salvaged() if context.membership.is_elastic else None
        self._before: Sequence[Holding] = ()  # until all have landed with it
        self._under_way: UnderWay | None = None
        self._is_stepped = False
        self._replicas: dict[int, Holding] = {}
        self._trained = trained
        self._owner_of: dict[str, int] = {}
        self._shard: Shard | None = None
        self._shares: list[Share] = []

    @abc.abstractmethod
    def _push(self, gradients: Mapping[str, Tensor | None] | None) -> None:
        """Begins to send the gradients of step `_clock`."""

    @abc.abstractmethod
    def _land(self) -> None:
        """Waits until all workers have stopped, and takes the exact parameters."""

    @abc.abstractmethod
    def _own_first(self) -> Iterable[Share]:
        """Yields shares, this rank's first."""

    def position(self) -> Position:
        """Says only whether it took part in a round, for shards tell the rest; nothing changes in its own any more."""
        if self._shard is not None:
            self._shard.freeze()
        self._is_clean = False  # there is nobody to say good-bye to
        made = int(self.rounds > 0 or (self._shard is not None and self._shard.updates > 0))
        if self._taken is not None:
            held, under_way, is_stepped = self._taken.holdings, self._taken.under_way, self._taken.is_stepped
        else:
            held, under_way, is_stepped = self._before, self._under_way, self._is_stepped
        clocks = [holding.clock for holding in held if holding.kind != "replica"]
        if self._taken is None:
            clocks += [share.clock for share in self._shares]
            clocks += [self._shard.clock] if self._shard is not None else []
        return Position(
            agreed=made,
            begun=made,
            is_stepped=is_stepped,
            served=max(clocks, default=0),
            under_way=under_way.clock if under_way is not None and self._in_rounds else 0,
        )

    def salvage(self) -> dict[str, Any]:
        """Returns what is this member's; `handed` is all that others may lack before they meet in `go_on`."""
        return {"kept": self._taken or self._present()}

    def handed(self, salvaged: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        return {"rounds": salvaged["kept"].rounds}

    def catch_up(
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Counts on; values come from servers."""
        return (
            {"kept": Salvaged(rounds=theirs["rounds"])} if is_new and "rounds" in theirs else dict(own)
        ), frozenset()

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        self._taken = state["kept"]

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Shares out shards, makes up for what was interrupted in some, and lands. Every member; blocks."""
        taken, inner = self._taken, self._context.transport.inner
        assert taken is not None
        deal = make_deal(inner, taken.holdings, self._owner_of)
        values, optimizer = hand_round(inner, taken.holdings, deal, self._owner_of)
        behind = deal.behind(self._owner_of) if self._in_rounds else frozenset[str]()
        clock = self._clock = deal.clock - bool(behind)
        if self._shard is not None:
            updates = max(
                (c.updates for n, c in deal.values.items() if self._owner_of[n] == self._rank), default=0
            )
            self._shard.take_over(values, optimizer, updates=updates, clock=clock, are_even=self._in_rounds)
        averagers = [a for share in self._shares for a in share.averagers]
        if taken.memory is not None:
            load_memory(
                averagers, fitting(averagers, unsent(taken, deal, self._in_rounds), what=str(self._roles))
            )
        inner.barrier()  # nobody asks a shard before it is whole
        self.rounds, self._taken, self._before = taken.rounds, None, taken.holdings
        self._under_way, self._is_stepped = taken.under_way, taken.is_stepped
        parameters, updates = deal.losses()
        if parameters:
            log.warning(
                "a server of %d parameters was lost: the replica of what its optimizer remembered of them is %d "
                "updates old, and those are lost.",
                parameters,
                updates,
            )
        self._make_up_for(behind, deal.clock)

    def _make_up_for(self, behind: frozenset[str], clock: int) -> None:
        """Brings all parameters to the same round, and begins one anew that is in none. Every member."""
        under_way, averagers = self._under_way, [a for share in self._shares for a in share.averagers]
        if self._shares:
            if behind and under_way is not None and under_way.clock == clock:
                before, gradients = memory(averagers), under_way.gradients
                self._clock = clock
                self._push(
                    None
                    if gradients is None
                    else {n: g if n in behind else None for n, g in gradients.items()}
                )
                for share in self._own_first():
                    share.receive(clock)
                after = memory(averagers)
                load_memory(averagers, {n: (after if n in behind else before)[n] for n in before})
            self._land()
            self._keep_replicas()
        self._before = ()
        # What is older has counted or is late; with backup workers, who was late may also be further.
        if under_way is None or not self._in_rounds or under_way.clock != self._clock + 1:
            self._under_way, self._is_stepped = None, False
            return
        self._clock, self._is_clean = under_way.clock, False
        self._push(under_way.gradients)
        if self._is_stepped:
            self.after_step(0)

    def _present(self) -> Salvaged:
        """Returns what this member has now."""
        holdings = [*self._before, *self._replicas.values()]
        if self._shard is not None:
            state = self._shard.state_dict()
            holdings.append(
                Holding(
                    kind="shard",
                    names=tuple(state["values"]),
                    updates=state["updates"],
                    clock=self._shard.clock,
                    values=state["values"],
                    optimizer=state["optimizer"],
                )
            )
        holdings += [share.heard() for share in self._shares if share.updates >= 0]
        return Salvaged(
            rounds=self.rounds,
            memory=memory(a for share in self._shares for a in share.averagers),
            holdings=holdings,
            under_way=self._under_way,
            is_stepped=self._is_stepped,
        )

    def _keep_replicas(self) -> None:
        """Fetches what the optimizer remembers from the server whose replica this worker keeps: the one before it."""
        workers = self._roles.workers
        for share in self._shares:
            keeper = workers[
                (1 + workers.index(share.owner) if share.owner in workers else share.owner) % len(workers)
            ]
            if keeper != self._rank or share.owner == self._rank:
                continue
            state = share.client.fetch(values=False)
            self._replicas[share.owner] = Holding(
                kind="replica",
                names=tuple(name for name, owner in self._owner_of.items() if owner == share.owner),
                updates=state["updates"],
                clock=state["clock"],
                optimizer=state["optimizer"],
            )

    def _look_for_changes(self) -> None:
        """Has a dedicated server leave when it is told to, and take part when somebody waits to be let in.

        Raises:
            PeerError: somebody waits, and all are to begin another world.
            SystemExit: it leaves; a replica takes its place.
        """
        membership = self._context.membership
        if membership.door is not None and membership.door.notice.is_set():
            log.warning("this server was told to leave, and leaves; workers go on with the replica.")
            raise SystemExit(0)
        if membership.wants_meeting:
            raise PeerError("somebody waits to be let in.", [])


def unsent(taken: Salvaged, deal: Deal, in_rounds: bool) -> Named:
    """Returns the memory of what was to be sent later: nothing of what a server may have taken without an answer.

    Its messages count then, and what they held must not be sent again.
    """
    kept, under_way = taken.memory or {}, taken.under_way
    if under_way is None:
        return kept
    heard = {name: h.clock for h in taken.holdings if h.kind == "heard" for name in h.names}

    def is_taken(name: str) -> bool:
        if heard.get(name, 0) >= under_way.clock:
            return False  # and its memory is that of afterwards
        return not in_rounds or (name in deal.values and deal.values[name].clock >= under_way.clock)

    return {
        name: {kind: torch.zeros_like(t) if is_taken(name) else t for kind, t in kinds.items()}
        for name, kinds in kept.items()
    }
