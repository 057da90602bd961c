"""Parameter servers: workers send gradients to the shards' owners, which step and send parameters back."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from tightwire.answers import Member
from tightwire.architecture import ParameterServer
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.round import Round
from tightwire.architecture.server.client import Client, LocalClient, RemoteClient
from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.messages import Flag, Header, Post
from tightwire.architecture.server.optimizer import Settings
from tightwire.architecture.server.parameter_server import Roles
from tightwire.architecture.server.service import Service
from tightwire.architecture.server.shard import Shard
from tightwire.averaging.bucket import BucketAverager
from tightwire.buckets import Bucket, on_host, plan_layout
from tightwire.compression import Codec, Identity
from tightwire.compression.checks import require_decoded
from tightwire.compression.compiling import compile_kernels
from tightwire.devices import device_of
from tightwire.errors import AttachError, PeerError
from tightwire.plan import Plan
from tightwire.runtime.checkpoint import merged
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.holdings import Deal, Holding, elect, hand_round, make_deal
from tightwire.runtime.engines.memory import Named, fitting, have_finite_gradients, load_memory, memory
from tightwire.schedule import TensorFacts
from tightwire.sync import Served, Ssp

log = logging.getLogger("tightwire")

# How long a server whose optimizer failed goes on telling workers so.
TELLING_S = 2.0
# How often a dedicated server that only serves looks whether members change.
LOOK_S = 0.1
# Of so many steps, elastic workers fetch what a server's optimizer remembers once: no death costs it more updates.
REPLICA_STEPS = 16


@dataclass(frozen=True)
class _UnderWay:
    """A gradient that servers have not answered: of which step, and by name; None where it was not finite."""

    clock: int
    gradients: Mapping[str, Tensor | None] | None


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What a worker or server goes on with in another world."""

    rounds: int = 0
    memory: Named | None = None
    holdings: Sequence[Holding] = ()
    under_way: _UnderWay | None = None
    is_stepped: bool = False


class ServerEngine(BaseEngine):
    """Whoever owns a shard serves it on threads; whoever trains asks all shards in every step.

    The optimizer's own step finds no gradients and changes nothing: shards step, with the settings that it has at
    the time. A worker's parameters are a copy, replaced after every step by what the servers have.

    Where members are elastic, the loss of one ends all waits. In the next world shards are shared out anew: values are
    those of living servers, or else what workers heard last; what the optimizer remembers comes from them or from the
    replica that a worker keeps, at most `REPLICA_STEPS` of its steps old. Under bsp a round that is in the values of
    some shards is made up for in the others by those who took part, and one that is in none is begun anew. Under asp
    and ssp a gradient under way counts in the shards that had taken it.
    """

    survives = True
    calls_rolls = False

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        architecture, transport = plan.architecture, context.transport
        assert isinstance(architecture, ParameterServer), architecture
        policy = plan.sync if isinstance(plan.sync, Served) else Ssp(0)  # bsp, behind servers
        self._is_elastic = context.membership.is_elastic
        optimizer = _only_optimizer(plan, context)
        self._optimizer = optimizer
        self._trained = _stepped_by(optimizer, parameters)
        self._others = {n: (p, p._version) for n, p in parameters.items() if n not in self._trained}
        self._groups = _sizes(optimizer)
        roles = (
            elect(architecture, transport.inner, context.membership, len(self._trained))
            if self._is_elastic
            else architecture.roles(transport.size)
        )
        self._in_rounds = policy.quorum(len(roles.workers)) > 0
        self._context, self._roles, self._rank = context, roles, transport.rank
        self._on_device = architecture.on_device
        device, places = device_of(self._trained), {p.device for p in self._trained.values()}
        held_bytes = device.memory(places).allocated_bytes
        self._settings = Settings(optimizer)
        self._owner_of = owner_of = dict(
            zip(self._trained, roles.share_out([p.numel() for p in self._trained.values()]), strict=True)
        )
        self._layouts = {
            rank: self._message_layout(rank, owner_of, plan) for rank in sorted(set(owner_of.values()))
        }
        self._post = Post(transport.channel())
        self._shard = self._own_shard(policy) if transport.rank in self._layouts else None
        self._service = self._serve() if self._shard is not None else None
        self._shares = (
            [self._share(rank, layout) for rank, layout in self._layouts.items()]
            if transport.rank in roles.workers
            else []
        )
        context.held[self] = device.memory(places).allocated_bytes - held_bytes
        self._clock = 0
        self._is_clean = True
        self._is_empty = False
        self._closed = False
        # Until all have what they go on with.
        self._taken: _Kept | None = _Kept() if self._is_elastic else None
        self._before: Sequence[Holding] = ()  # until all have landed with it
        self._under_way: _UnderWay | None = None
        self._is_stepped = False
        self._replicas: dict[int, Holding] = {}
        self._staleness: Counter[int] = Counter()
        self.leads: Counter[int] = Counter()

    @property
    def planned_bytes(self) -> int:  # type: ignore[override]
        """Payload bytes of all messages so far, by formula."""
        return self._post.planned_bytes

    flush_is_collective = False  # servers stay on, and workers may have died

    @property
    def is_server(self) -> bool:  # type: ignore[override]  # noqa: D102
        return not self._shares

    def before_step(self) -> None:
        """Sends gradients to the shards' owners, and takes them from the optimizer.

        Raises:
            AttachError: this rank is a server; or parameters are stepped that servers do not know.
        """
        if self.is_server:
            raise AttachError(
                f"rank {self._rank} is a server and does not train: write `if not run.is_server:` around the training "
                "loop; the end of the `with` block, or run.finish(), serves until all workers have finished."
            )
        self._require_same_parameters()
        self._clock += 1
        self.rounds += 1
        self._is_clean = False
        is_finite = have_finite_gradients(self._trained.values())
        gradients = {name: parameter.grad for name, parameter in self._trained.items()}
        self._under_way = _UnderWay(self._clock, gradients if is_finite else None)
        for parameter in self._trained.values():
            parameter.grad = None
        self._push(self._under_way.gradients)

    def after_step(self, step: int) -> None:
        """Waits for the parameters to go on with.

        Raises:
            PeerError: a server is dead, or a worker that the policy waits for.
        """
        if self._under_way is None:  # a member was lost while it was sent, and all have landed since
            self.exposed_s = 0.0
            return
        self._is_stepped = True
        start_s = time.perf_counter()
        headers = [share.receive(self._clock) for share in self._own_first()]
        self.exposed_s = time.perf_counter() - start_s
        self._install()
        self._staleness[max(header.staleness for header in headers)] += 1
        self.leads[max(header.clock - header.slowest for header in headers)] += 1
        self.late += any(Flag.LATE in header.flags for header in headers)
        self.skipped += self._is_empty or any(Flag.DROPPED in header.flags for header in headers)
        self._under_way, self._is_stepped = None, False
        if self._is_elastic and self._clock % REPLICA_STEPS == 0:
            self._keep_replicas()

    def flush(self) -> None:
        """Waits until all workers have stopped, and takes the parameters that all end with.

        On a server: serves until all workers have finished.
        """
        if self._closed:
            return
        if self.is_server:
            assert self._service is not None
            assert self._shard is not None
            while not self._service.join(LOOK_S if self._is_elastic else None):
                self._shard.require_sound()
                self._look_for_changes()
            self._shard.require_sound()
            return
        self._land()

    def consensus(self) -> Mapping[str, Tensor]:  # noqa: D102
        self.flush()
        return {}

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
            {"kept": _Kept(rounds=theirs["rounds"])} if is_new and "rounds" in theirs else dict(own)
        ), frozenset()

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        self._taken = state["kept"]

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Shares out shards, makes up for what was interrupted in some, and lands. Every member; blocks."""
        taken, inner = self._taken, self._context.transport.inner
        assert taken is not None
        deal = make_deal(inner, taken.holdings)
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
                averagers, fitting(averagers, _unsent(taken, deal, self._in_rounds), what=str(self._roles))
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
        if under_way is None or not self._in_rounds or under_way.clock <= self._clock:
            self._under_way, self._is_stepped = None, False
            return
        self._clock, self._is_clean = under_way.clock, False
        self._push(under_way.gradients)
        if self._is_stepped:
            self.after_step(0)

    def staleness(self) -> Mapping[int, int]:
        """Returns how many gradients were so many updates of others old when they were applied.

        Under policies with rounds: so many rounds late; those above 0 were dropped.
        """
        return self._staleness

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint. Every worker, unless the engine is closed."""
        self.flush()
        state = {
            "rounds": self.rounds,
            "clock": self._clock,
            "memory": memory(a for share in self._shares for a in share.averagers),
            "shards": self._fetch(),
        }
        self.flush()  # until then nobody goes on, and shards are as they landed
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned. Every worker.

        Raises:
            AttachError: a checkpoint of other shards, or of stages that remember something else.
        """
        for share in self._shares:
            if self._keeper_of(share.owner) == self._rank:
                if str(share.owner) not in state["shards"]:
                    raise AttachError(
                        f"the checkpoint of rank {self._rank} has no shard of rank {share.owner}, only those of "
                        f"{sorted(state['shards'])}; load it on as many ranks, under the same ps."
                    )
                share.client.store(state["shards"][str(share.owner)])
        self._clock, self.rounds = state["clock"], state["rounds"]
        self._replicas.clear()
        self.flush()
        load_memory([a for share in self._shares for a in share.averagers], state["memory"])

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up all shards, however parameters are shared out now. Every worker."""
        shards = [shard for state in states for shard in state["shards"].values()]
        values = {name: value for shard in shards for name, value in shard["values"].items()}
        optimizer = {name: kept for shard in shards for name, kept in shard["optimizer"].items()}
        self._clock, self.rounds = (max(state[key] for state in states) for key in ("clock", "rounds"))
        self._replicas.clear()
        if self._shard is not None:
            names = self._layouts[self._rank].names
            self._shard.load_state_dict(
                {
                    "values": {name: values[name] for name in names},
                    "optimizer": {name: optimizer[name] for name in names if name in optimizer},
                    "updates": max(shard["updates"] for shard in shards),
                    "clock": self._clock,
                }
            )
        self.flush()
        load_memory(
            [a for share in self._shares for a in share.averagers],
            merged([state["memory"] for state in states]),
        )

    def resume_at(self, rounds: int) -> None:
        """Counts on from a checkpoint's rounds, with this rank's parameters in its own shard. Every worker."""
        self.rounds = self._clock = rounds
        self._replicas.clear()
        if self._shard is not None:
            self._shard.restart({n: p.detach() for n, p in self._trained.items()}, rounds)
        self.flush()

    def close(self) -> None:
        """Says good-bye, unless something failed: then the others are to know. Ends threads."""
        if self._closed:
            return
        self._closed = True
        if self._shard is not None and self._shard.has_failed and self._service is not None:
            self._service.settle(TELLING_S)
        if self._is_clean:
            if self._service is not None:  # others may still be on their way to what this rank has got
                self._service.settle(self._context.transport.deadline_s)
            for share in self._shares:
                share.client.bye()
        self._post.channel.close()

    def _push(self, gradients: Mapping[str, Tensor | None] | None) -> None:
        """Begins to send the gradients of step `_clock`, by name; None: they are not finite."""
        self._is_empty = gradients is None
        for share in self._shares:
            share.send(self._clock, gradients or {}, None if gradients is None else self._settings.read())

    def _land(self) -> None:
        for share in self._shares:
            share.client.leave(self._clock)
        headers = [share.land(self._clock) for share in self._own_first()]
        self._clock = max(header.clock for header in headers)
        self._install()
        self._is_clean = True

    def _present(self) -> _Kept:
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
        return _Kept(
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

    def _require_same_parameters(self) -> None:
        """Makes sure that servers step all that is stepped."""
        if _sizes(self._optimizer) != self._groups:
            raise AttachError(
                "the optimizer's groups changed after it was attached, and servers step only the parameters that they "
                "were given then; close the run and attach again."
            )
        if moved := [name for name, (p, version) in self._others.items() if p._version != version]:
            raise AttachError(
                f"{len(moved)} parameters, {moved[0]} among them, are changed by something else than the attached "
                "optimizer, and servers would never see it; give them to that optimizer as a group, or choose a plan "
                "without servers, such as bsp, and attach a list of optimizers."
            )

    def _fetch(self) -> dict[str, Any]:
        """Returns the shards whose state this rank's checkpoints hold, by owner."""
        mine = [share for share in self._shares if self._keeper_of(share.owner) == self._rank]
        if self._closed:  # nobody else answers any more
            mine = [share for share in mine if share.owner == self._rank]
        return {str(share.owner): share.client.fetch() for share in mine}

    def _keeper_of(self, owner: int) -> int:
        """Returns the worker whose checkpoints hold a shard: its owner, or some worker for a dedicated server."""
        return (
            owner if owner in self._roles.workers else self._roles.workers[owner % len(self._roles.workers)]
        )

    def _message_layout(self, owner: int, owner_of: Mapping[str, int], plan: Plan) -> MessageLayout:
        tensors = {name: p for name, p in reversed(self._trained.items()) if owner_of[name] == owner}
        routes = {name: self._context.compression_of(name, p, plan) for name, p in tensors.items()}
        facts = [
            TensorFacts(num_bytes=p.numel() * p.itemsize, kind=(str(p.dtype), *map(str, routes[name])))
            for name, p in tensors.items()
        ]
        layout = plan_layout(tensors, plan.schedule.partition(facts))
        # Shards and what travels to them are on the host, wherever the parameters are.
        if not self._on_device:
            layout = on_host(layout)
        compressions = tuple(routes[bucket.slots[0].name] for bucket in layout)
        for bucket, compression in zip(layout, compressions, strict=True):
            if isinstance(compression[0], Codec):
                compile_kernels(compression[0], bucket.dtype, bucket.device)
        return MessageLayout(buckets=layout, compressions=compressions, num_settings=self._settings.count)

    def _own_shard(self, policy: Served) -> Shard:
        layout = self._layouts[self._rank]
        return Shard(
            layout,
            policy,
            {name: self._trained[name].detach() for name in layout.names},
            self._optimizer,
            {id(p): name for name, p in self._trained.items()},
            workers=self._roles.workers,
            seed=self._context.seed,
            deadline_s=self._context.transport.deadline_s,
            late_s=self._context.transport.late_s,
            owner=self._rank,
            ends_on_loss=self._is_elastic,
        )

    def _serve(self) -> Service:
        assert self._shard is not None
        elsewhere = {number: rank for number, rank in enumerate(self._roles.workers) if rank != self._rank}
        return Service(self._shard, self._layouts[self._rank], self._post, elsewhere)

    def _share(self, owner: int, layout: MessageLayout) -> _Share:
        if owner == self._rank:
            assert self._shard is not None
            client: Client = LocalClient(self._shard, self._roles.workers.index(self._rank))
        else:
            client = RemoteClient(self._post, layout, owner)
        return _Share(owner, layout, client, self._trained, self._roles, self._context.seed, self._rank)

    def _own_first(self) -> Iterable[_Share]:
        """Yields shares, this rank's first: others may be waiting for its push."""
        return sorted(self._shares, key=lambda share: share.owner != self._rank)

    @torch.no_grad()
    def _install(self) -> None:
        for share in self._shares:
            for bucket in share.values:
                for name, view in bucket.views.items():
                    self._trained[name].copy_(view)


@dataclass
class _Room:
    """Where a bucket's message goes: the present push's part."""

    message: Tensor


class _Writer:
    """Encodes a bucket into its part of the push; an averager of this worker alone, for the stages around it."""

    error: float | None = None

    def __init__(self, codec: Codec, room: _Room) -> None:
        self.lossless, self.delivery = codec.lossless, codec.delivery
        self.bytes_sent = self.spared_bytes = 0  # the layout counts
        self._codec, self._room = codec, room

    def run(self, bucket: Tensor, mean: Tensor, *, seed: int) -> None:
        """Writes the message of `bucket`, and leaves in it what that does not carry; `mean` is what it carries."""
        if not bucket.numel():
            return
        if self._codec.selects:
            mean.copy_(bucket)
        self._codec.encode(bucket, self._room.message, seed=seed)
        if self._codec.selects:
            mean.sub_(bucket)

    def keep(self) -> None:
        """Does nothing: a run leaves nothing to remember."""

    def memory(self) -> dict[str, Tensor]:
        """Returns nothing; see `keep`."""
        return {}


class _Share:
    """One shard as its worker has it: gradients on their way out, values on their way in.

    Attributes:
        owner: the shard's rank.
        client: asks it.
        averagers: take gradients through the stages of their compression.
        values: the parameters as last received, per bucket.
        updates: that the server had made then; −1 before.
        clock: of the step that they answered.
    """

    def __init__(
        self,
        owner: int,
        layout: MessageLayout,
        client: Client,
        parameters: Mapping[str, Tensor],
        roles: Roles,
        seed: int,
        rank: int,
    ) -> None:
        self.owner, self.client = owner, client
        self._message_layout, self._seed, self._rank = layout, seed, rank
        self._rooms = [_Room(torch.empty(0, dtype=torch.uint8)) for _ in layout.buckets]
        self.averagers = [
            BucketAverager(Bucket(layout), compression, _writers(room), workers=len(roles.workers))
            for layout, compression, room in zip(
                layout.buckets, layout.compressions, self._rooms, strict=True
            )
        ]
        self.values = [Bucket(layout) for layout in layout.buckets]
        for bucket in self.values:
            bucket.pack({name: parameters[name].detach() for name in bucket.views})
        self._payload = layout.room(layout.push_bytes(1))
        self._has_gradient = False
        self.updates, self.clock = -1, 0

    def heard(self) -> Holding:
        """Returns a copy of what was last received."""
        values = {name: view.clone() for bucket in self.values for name, view in bucket.views.items()}
        return Holding(
            kind="heard", names=tuple(values), updates=self.updates, clock=self.clock, values=values
        )

    def send(
        self, clock: int, by_name: Mapping[str, Tensor | None], settings: Sequence[float] | None
    ) -> None:
        """Begins a push; without settings, of nothing."""
        self._has_gradient = settings is not None
        if settings is None:
            self.client.push(clock, None)
            return
        payload = self._room_for(self._message_layout.push_bytes(clock))
        used, numbers, messages = self._message_layout.open_push(payload, clock)
        numbers.copy_(torch.tensor(settings, dtype=torch.float64))
        gradients = [by_name[name] for name in self._message_layout.names]
        used.copy_(torch.tensor([gradient is not None for gradient in gradients], dtype=torch.uint8))
        for number, (averager, message) in enumerate(zip(self.averagers, messages, strict=True)):
            for name, view in averager.bucket.views.items():
                gradient = by_name[name]
                view.zero_() if gradient is None else view.copy_(gradient)
            self._rooms[number].message = message
            seed = message_seed(self._seed + clock, self._rank + 1, number)
            averager.run(Round(number=clock, seed=seed))
        self.client.push(clock, payload)

    def receive(self, clock: int) -> Header:
        """Waits for the parameters to go on with, and keeps what stages learnt if the gradient counted."""
        header, payload = self.client.answer()
        if self._has_gradient and not header.flags & (Flag.LATE | Flag.DROPPED):
            for averager in self.averagers:
                averager.keep()
        codecs, messages = self._message_layout.codecs(clock), self._message_layout.open_pull(payload, clock)
        for codec, message, bucket in zip(codecs, messages, self.values, strict=True):
            if bucket.flat.numel():
                codec.decode(message, bucket.flat, add=not self._message_layout.is_plain)
        require_decoded(self._message_layout.device)
        self.updates, self.clock = header.updates, clock
        return header

    def land(self, clock: int) -> Header:
        """Waits until all workers have stopped, and takes the exact parameters."""
        header, payload = self.client.answer()
        exact = Identity()
        for message, bucket in zip(
            self._message_layout.open_pull(payload, clock, exact=True), self.values, strict=True
        ):
            if bucket.flat.numel():
                exact.decode(message, bucket.flat)
        self.updates, self.clock = header.updates, header.clock
        return header

    def _room_for(self, num_bytes: int) -> Tensor:
        if self._payload.numel() < num_bytes:
            self._payload = self._message_layout.room(num_bytes)
        return self._payload[:num_bytes]


def _writers(room: _Room) -> Any:
    def build(sender: Member) -> _Writer:
        assert isinstance(sender, Codec), sender
        return _Writer(sender, room)

    return build


def _only_optimizer(plan: Plan, context: RunContext) -> Optimizer:
    """Returns the optimizer that servers step with.

    Raises:
        AttachError: several, or one whose steps need a closure.
    """
    members = context.optimizers.members
    if len(members) > 1:
        raise AttachError(
            f"{plan} has servers step with the optimizer that they were given, and {len(members)} were attached; "
            "attach one with several groups, or choose a plan without servers, such as bsp."
        )
    if isinstance(members[0], LBFGS):
        raise AttachError(
            f"LBFGS evaluates the loss within its step, and under {plan} a server steps, which has no loss; choose "
            "another optimizer, or bsp."
        )
    return members[0]


def _unsent(taken: _Kept, deal: Deal, in_rounds: bool) -> Named:
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


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def _stepped_by(optimizer: Optimizer, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Returns the trained parameters that the optimizer steps; others stay as they are, as in plain PyTorch."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in known}
