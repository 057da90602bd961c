"""Parameter servers: workers send gradients to the shards' owners, which step and send parameters back."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from tightwire.architecture import ParameterServer
from tightwire.architecture.server.client import Client, LocalClient, RemoteClient
from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.messages import Flag, Post
from tightwire.architecture.server.optimizer import Settings, load_optimizer_state
from tightwire.architecture.server.service import Service
from tightwire.architecture.server.shard import Shard
from tightwire.buckets import on_host, plan_layout
from tightwire.compression import Codec
from tightwire.compression.compiling import compile_kernels
from tightwire.compression.stage import sender_of
from tightwire.devices import device_of
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.checkpoint import merged
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.holdings import elect
from tightwire.runtime.engines.memory import have_finite_gradients, load_memory, memory
from tightwire.runtime.engines.server_renewal import REPLICA_STEPS, ServedMember, UnderWay
from tightwire.runtime.engines.server_share import Share
from tightwire.schedule import TensorFacts
from tightwire.sync import Served, Ssp

log = logging.getLogger("tightwire")

# How long a server whose optimizer failed goes on telling workers so.
TELLING_S = 2.0
# How often a dedicated server that only serves looks whether members change.
LOOK_S = 0.1


class ServerEngine(ServedMember):
    """Whoever owns a shard serves it on threads; whoever trains asks all shards in every step.

    The optimizer's own step finds no gradients and changes nothing: shards step, with the settings that it has at
    the time. A worker's parameters are a copy, replaced after every step by what the servers have.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        architecture, transport = plan.architecture, context.transport
        assert isinstance(architecture, ParameterServer), architecture
        policy = plan.sync if isinstance(plan.sync, Served) else Ssp(0)  # bsp, behind servers
        self._is_elastic = context.membership.is_elastic
        optimizer = _only_optimizer(plan, context)
        self._optimizer = optimizer
        trained = _stepped_by(optimizer, parameters)
        self._others = {n: (p, p._version) for n, p in parameters.items() if n not in trained}
        self._groups = _sizes(optimizer)
        roles = (
            elect(architecture, transport.inner, context.membership, len(trained))
            if self._is_elastic
            else architecture.roles(transport.size)
        )
        if self._is_elastic:
            policy = policy.fitted(len(roles.workers))
        super().__init__(context, roles, trained, in_rounds=policy.quorum(len(roles.workers)) > 0)
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
        self._is_empty = False
        self._closed = False
        self._staleness: Counter[int] = Counter()
        self.leads: Counter[int] = Counter()

    @property
    def workers(self) -> Sequence[int]:
        """Ranks that train."""
        return self._roles.workers

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
        self._under_way = UnderWay(self._clock, gradients if is_finite else None)
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

    def give_back(self) -> None:
        """Fetches what all shards remember, without values: the next plan's optimizer steps on with it."""
        fetched = [share.client.fetch(values=False)["optimizer"] for share in self._shares]
        self.flush()  # until then nobody leaves
        remembered = {name: kept for shard in fetched for name, kept in shard.items()}
        if self._shares:
            load_optimizer_state(self._optimizer, self._trained, remembered)

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
        self._note_others()
        self.flush()
        load_memory([a for share in self._shares for a in share.averagers], state["memory"])

    def load_merged(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up all shards, however parameters are shared out now. Every worker."""
        shards = [shard for state in states for shard in state["shards"].values()]
        values = {name: value for shard in shards for name, value in shard["values"].items()}
        optimizer = {name: kept for shard in shards for name, kept in shard["optimizer"].items()}
        self._clock, self.rounds = (max(state[key] for state in states) for key in ("clock", "rounds"))
        self._replicas.clear()
        self._note_others()
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
        self._note_others()
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
            # First of all: a newcomer may stop once more, and waits for all who have not said so.
            for share in self._shares:
                share.client.bye()
            if self._service is not None:  # others may still be on their way to what this rank has got
                self._service.settle(self._context.transport.deadline_s)
        self._post.channel.close()

    def _push(self, gradients: Mapping[str, Tensor | None] | None) -> None:
        """Begins to send the gradients of step `_clock`, by name; None: they are not finite."""
        self._is_empty = gradients is None
        read_in = min((share.read_in for share in self._shares), default=0)
        settings = None if gradients is None else self._settings.read()
        for share in self._shares:
            share.send(self._clock, gradients or {}, settings, read_in=read_in)

    def _land(self) -> None:
        for share in self._shares:
            share.client.leave(self._clock)
        headers = [share.land(self._clock) for share in self._own_first()]
        self._clock = max(header.clock for header in headers)
        self._install()
        self._is_clean = True

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

    def _note_others(self) -> None:
        """Takes parameters that servers do not step as what they are now: they were loaded with the rest."""
        self._others = {name: (p, p._version) for name, (p, _) in self._others.items()}

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
            TensorFacts(
                num_bytes=p.numel() * p.itemsize,
                kind=(str(p.dtype), *map(str, routes[name])),
                is_exact=sender_of(routes[name]).lossless,
            )
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

    def _share(self, owner: int, layout: MessageLayout) -> Share:
        if owner == self._rank:
            assert self._shard is not None
            client: Client = LocalClient(self._shard, self._roles.workers.index(self._rank))
        else:
            client = RemoteClient(self._post, layout, owner)
        return Share(owner, layout, client, self._trained, self._roles, self._context.seed, self._rank)

    def _own_first(self) -> Iterable[Share]:
        """Yields shares, this rank's first: others may be waiting for its push."""
        return sorted(self._shares, key=lambda share: share.owner != self._rank)

    @torch.no_grad()
    def _install(self) -> None:
        for share in self._shares:
            for bucket in share.values:
                for name, view in bucket.views.items():
                    self._trained[name].copy_(view)


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


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def _stepped_by(optimizer: Optimizer, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Returns the trained parameters that the optimizer steps; others stay as they are, as in plain PyTorch."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in known}
