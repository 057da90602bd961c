"""attach(model, optimizer, plan): the one place that touches the user's objects.

The file is private because `tightwire.attach` is the function; a module of that name would hide it.
"""

from __future__ import annotations

import fnmatch
import itertools
import logging
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, get_args

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from tightwire.devices import device_named, kinds_of, require_one_device
from tightwire.errors import AttachError
from tightwire.plan import Phases, PlanFile, Route
from tightwire.planner import Allowance
from tightwire.runtime.agreement import copy_from_first, model_facts, require_agreement
from tightwire.runtime.auto import Pilot
from tightwire.runtime.carried import Carried, Stateful
from tightwire.runtime.choice import PlanSearch
from tightwire.runtime.context import RunContext
from tightwire.runtime.elastic_auto import ElasticPilot
from tightwire.runtime.groups import Groups, Sharing, form, resolve
from tightwire.runtime.guard import require_attachable
from tightwire.runtime.habits import Habits
from tightwire.runtime.keeping import Keeping, require_keepable
from tightwire.runtime.learnt import Learnt, facts_of
from tightwire.runtime.membership import Membership
from tightwire.runtime.outer import MakeOuter
from tightwire.runtime.request import Buffers, PlanLike, Request
from tightwire.runtime.run import Run
from tightwire.runtime.step import Optimizers, plain_optimizer
from tightwire.runtime.trace import Tracer
from tightwire.runtime.tuning import Tuner
from tightwire.schedule import Auto
from tightwire.simulate.collective import as_native
from tightwire.transport import Counting, Single, Transport, current, shelf, switch, workers_per_node
from tightwire.transport.reach import reaching
from tightwire.ways import Over

log = logging.getLogger("tightwire")
_attached = itertools.count()  # tells the runs of one job apart


class Scaler(Protocol):
    """What is needed of a `torch.amp.GradScaler`."""

    def get_scale(self) -> float:
        """Returns the present loss scale; one of `torch.amp` waits for its device."""


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    plan: PlanLike = "auto",
    *,
    transport: Transport | None = None,
    buffers: Buffers = "start",
    scaler: Scaler | None = None,
    seed: int = 0,
    allow: Allowance = "lossless",
    outer: MakeOuter | None = None,
    leave: Iterable[str] = (),
    groups: Groups | None = None,
    keep: str | pathlib.Path | None = None,
    carry: Mapping[str, Stateful] | None = None,
    over: Over = "auto",
    remember: int = 0,
) -> Run:
    """Binds a model and its optimizer to their replicas on the other ranks, as `plan` says.

    Parameters and buffers become rank 0's at once. The result is a context; see `Run`.

    Args:
        model: any module; frozen, unused and shared parameters are welcome, sparse gradients are not.
        optimizer: any `torch.optim` optimizer of the model's parameters, or a list of them: a step is over then when
            all have stepped. Every option of every group must be equal on all ranks, and stay so.
        plan: a plan, its text, phases (`bsp@500~local:8`: bsp up to step 500), a plan file or its path (`*.yaml`), or
            `auto`: probe the wire now, profile the first steps, then go on with the best plan that `allow` admits. A
            `Race`, or `race:BUDGET` (`race:40min`): the same, and the best few are tried on the job itself.
        transport: between the ranks; by default the one that `tightwire.init()` joined.
        buffers: `start` makes buffers equal once, and each rank then has its own, such as statistics of BatchNorm.
            `every-step` copies rank 0's with every round in which all take part: under `bsp` after every step, as DDP
            does before every pass; under local methods with each round; under gossip at the end only. Refused where
            workers go on without each other: servers, asynchronous gossip, rounds with a quorum.
        scaler: the AMP GradScaler, if there is one, on all ranks or on none, so that leftovers are kept in unscaled
            units. Whose data ended sooner takes, at the end, the scale of who trained longest.
        seed: of stochastic codecs, the same on every rank.
        allow: for `auto` and a race: `lossless` plans, `lossy` ones too, or `stale` ones as well; see
            `tightwire.recommend`.
        outer: makes the outer optimizer of `diloco` and its kin from the parameters that all agreed on, such as
            `lambda agreed: torch.optim.SGD(agreed, lr=0.5)`; by default the plan says.
        leave: glob patterns over names of parameters and buffers that are each rank's own, such as `experts.*`: they
            are neither made equal nor averaged. Names on DDP's own list (`_ddp_params_and_buffers_to_ignore`) are left
            too.
        groups: parameters that this rank shares with some ranks only, as experts are: by a glob pattern over their
            names or a module of the model, the ranks of the group (`{"experts.*": [0, 2]}`) or their process group.
            They are made equal and averaged within it.
        keep: a plan file for what `auto` or a race chooses: where it exists and was made for this model on this
            device, this kind of optimizer, so many workers, this version and about this wire, its plan is taken at
            once. The batch is not known by then: name another file for another one. Rank 0 reads and writes it.
        carry: what a worker that joins later (after `init(elastic=True)`), or one that is started anew (see
            `remember`), is given besides the model and the optimizer, by any names: its data's place (a
            `StatefulDataLoader`), a learning-rate scheduler.
        over: of a model on a GPU, how messages leave it: `nccl`; `pinned`, by host memory and Gloo; `nccl-inside`, NCCL
            within nodes and pinned memory across; or `auto`: NCCL where every rank has a device of its own.
        remember: under torchrun with `--max-restarts`: keep a snapshot in the memory of the host, with the first round
            that ends after so many steps or more, and of several hosts a copy on the next. A job that is started anew
            then goes on after the last one that there is of all workers, to the bit: `run.step` is its step, and
            `carry` names what else it holds. 0: none.

    Contract: every rank, with the same model shapes, plan and options; blocks until all have arrived.

    Raises:
        PlanError: a plan that cannot work.
        AttachError: a model or an optimizer that cannot be attached.
        FileError: a plan file that cannot be read, or a file for `keep` that holds something else.
        MismatchError: ranks that disagree, named with the difference, on every rank.
        PeerError: a rank that did not arrive within the transport's deadline.
    """
    _require_known("buffers", buffers, get_args(Buffers))
    _require_known("allow", allow, get_args(Allowance))
    transport = current() if transport is None else transport
    door = transport.door if isinstance(transport, Single) else None
    asked = Request.read(plan, allow)
    listed = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    optimizers = Optimizers([plain_optimizer(member) for member in listed])
    model = _uncompiled(model)
    shared = resolve(model, groups or {}, transport)
    left = _left(model, leave) | shared.keys()
    asked.require_possible(num_ranks=None if door is not None else transport.size, buffers=buffers)
    _require_routed(model, asked.plan_file.routing)
    facts = _facts(asked, model, optimizers, left, num_ranks=transport.size)
    carried = _carried(carry or {}, scaler)
    named = carried.names if carried is not None else ()
    facts |= {"buffers": buffers, "seed": seed, "over": over, "carried": ", ".join(named)}
    if door is None:  # newcomers get the options that optimizers have by then
        facts |= optimizers.hyperparameters()
        require_agreement(transport, facts)
    require_attachable(model, optimizers)
    require_one_device(dict(model.named_parameters()))
    transport = reaching(transport, next(model.parameters()).device, over)
    if transport.rank == 0 and transport.size > 1:
        _warn_of_sizes(asked.phases, model)
    counting = Counting(transport)
    sharings = form(counting, shared) if door is None else ()
    look = _look(asked, model, optimizers, left, keep, goes_back=door is None)
    asked, pilot = _piloted(asked, look, transport, is_elastic=door is not None)
    # What was kept for this job, too.
    asked.require_possible(num_ranks=None if door is not None else transport.size, buffers=buffers)
    context = RunContext(
        transport=counting,
        routing=asked.plan_file.routing,
        tracer=Tracer(),
        seed=seed,
        gradient_scale=_scale_of(scaler, next(model.parameters()).device),
        model=model,
        optimizers=optimizers,
        membership=Membership(tuple(range(transport.size)), door=door),
        left=left,
        groups=sharings,
        habits=pilot.habits if pilot is not None else None,
        awaits_means=scaler is not None,
        outer=outer,
        leaves_by=over,
        workers_per_node=workers_per_node(),
        wiring=asked.wiring,
        switch=switch(),
        costs=pilot.costs if isinstance(pilot, Pilot) else asked.costs,
    )
    _make_equal(model, sharings, left, None if door is not None else transport)
    return Run(
        model,
        asked.phases,
        context,
        buffers=buffers,
        predicted=asked.predicted,
        why=asked.plan_file.why,
        pilot=pilot or _tuner(asked.phases, transport, seed),
        facts=facts,
        carried=carried,
        keeping=_keeping(asked, context, carried, remember, facts),
    )


def _require_known(option: str, value: str, known: Sequence[str]) -> None:
    """Refuses a word that would be taken for another one.

    Raises:
        AttachError: lists those that exist.
    """
    if value not in known:
        raise AttachError(f"{option}={value!r} is not known; write {' or '.join(map(repr, known))}.")


def _facts(
    asked: Request, model: nn.Module, optimizers: Optimizers, left: frozenset[str], *, num_ranks: int
) -> dict[str, object]:
    """Returns what all ranks must have alike of plan, model and optimizers."""
    facts = asked.facts(num_ranks) | {
        "optimizer": _names_of(optimizers),
        "kind of device": kinds_of(model.parameters()),
    }
    return facts | model_facts(model, left)


def _names_of(optimizers: Optimizers) -> str:
    return " and ".join(type(member).__name__ for member in optimizers.members)


def _look(
    asked: Request,
    model: nn.Module,
    optimizers: Optimizers,
    left: frozenset[str],
    keep: str | pathlib.Path | None,
    *,
    goes_back: bool,
) -> Callable[[Transport, Habits], Pilot | PlanFile]:
    """Returns what looks for a plan: a look returns who will choose one, or the plan that was kept for this job.

    Contract of a look: every rank; blocks while the wire is measured.
    """

    def look(transport: Transport, habits: Habits) -> Pilot | PlanFile:
        at = next(model.parameters()).device
        about = facts_of(
            model_facts(model, left),
            _names_of(optimizers),
            at,
            transport.size,
            workers_per_node(),
            asked.name,
        )
        learnt = Learnt(pathlib.Path(keep), about) if keep is not None else None
        kept = learnt.recall(transport) if learnt is not None else None
        if kept is not None:
            return kept
        forgets = learnt.keep if learnt is not None else _forget
        search = PlanSearch(allow=asked.allow, race=asked.race, keep=forgets, goes_back=goes_back)
        return _pilot(model, optimizers, transport, search, left, habits)

    return look


def _piloted(
    asked: Request,
    look: Callable[[Transport, Habits], Pilot | PlanFile],
    transport: Transport,
    *,
    is_elastic: bool,
) -> tuple[Request, Pilot | ElasticPilot | None]:
    """Returns what is asked for now, and who will choose a plan; nobody where it is known, or was kept for this job.

    Contract: every rank; blocks while the wire is measured.
    """
    if not asked.is_auto:
        return asked, None
    if is_elastic:
        return asked, ElasticPilot(look)
    if transport.size == 1:
        return asked, None
    found = look(transport, Habits())
    if isinstance(found, PlanFile):
        return asked.settled(found), None
    return asked.begun(found.watched), found


def _make_equal(
    model: nn.Module, sharings: Sequence[Sharing], left: frozenset[str], transport: Transport | None
) -> None:
    """Makes parameters and buffers those of the first rank, of a group too.

    Args:
        model: this rank's.
        sharings: groups that share some parameters.
        left: names of what is not the same on all ranks.
        transport: between all; None where newcomers get everything from a member.
    """
    named = dict([*model.named_parameters(), *model.named_buffers()])
    for sharing in sharings:
        within = sharing.transport.inner
        require_agreement(within, model_facts(model, named.keys() - {*sharing.names}))
        copy_from_first(within, [p for name, p in model.named_parameters() if name in sharing.names])
    if transport is not None:
        copy_from_first(transport, [tensor for name, tensor in named.items() if name not in left])


def _carried(carry: Mapping[str, Stateful], scaler: Scaler | None) -> Carried | None:
    """Returns what newcomers are given besides: also the scaler, for means are of gradients in one scale."""
    members = dict(carry)
    if isinstance(scaler, GradScaler) and not any(member is scaler for member in members.values()):
        members["the GradScaler"] = scaler
    return Carried(members) if members else None


def _keeping(
    asked: Request, context: RunContext, carried: Carried | None, every: int, facts: Mapping[str, object]
) -> Keeping | None:
    """Returns what keeps snapshots, if they are asked for and torchrun would start this worker anew.

    Contract: every rank; blocks.
    """
    number = next(_attached)
    if not every:
        return None
    is_elastic = context.membership.is_elastic
    require_keepable(asked.phases, is_auto=asked.is_auto, is_elastic=is_elastic, every=every)
    place = shelf()
    if place is None:
        log.warning(
            "attach(remember=%d): no torchrun started this worker, so that nothing starts it anew; nothing is kept.",
            every,
        )
        return None
    which = f"{number} {sorted((key, str(fact)) for key, fact in facts.items())}"
    return Keeping(place, context.model, context, carried, every=every, run=which)


def _scale_of(scaler: Scaler | None, at: torch.device) -> Callable[[], float | Tensor]:
    """Returns what tells the present loss scale: on a device as a tensor there, for which the host does not wait."""
    if scaler is None:
        return lambda: 1.0
    if device_named(at).is_host or not isinstance(scaler, GradScaler):
        return scaler.get_scale
    if not scaler.is_enabled():
        return lambda: 1.0
    return lambda: scaler.scale(torch.ones((), device=at))


def _uncompiled(model: nn.Module) -> nn.Module:
    """Returns the module inside `torch.compile(model)`: they share parameters, and checkpoints have its names."""
    inner = model._modules.get("_orig_mod") if type(model).__name__ == "OptimizedModule" else None
    return model if inner is None else inner


def _left(model: nn.Module, patterns: Iterable[str]) -> frozenset[str]:
    """Returns the names of what is left as it is on each rank.

    Raises:
        AttachError: a pattern that matches nothing.
    """
    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    ignored: Iterable[str] = vars(model).get("_ddp_params_and_buffers_to_ignore", ())
    left = set(ignored).intersection(names)
    for pattern in patterns:
        if not (found := fnmatch.filter(names, pattern)):
            raise AttachError(
                f"leave={pattern!r} matches no parameter or buffer of the model; its names are like "
                f"{', '.join(names[:3])}."
            )
        left.update(found)
    return frozenset(left)


def _require_routed(model: nn.Module, routing: Iterable[Route]) -> None:
    """Makes sure that every route is of some parameter: one that is misspelt would have it compressed after all.

    Raises:
        AttachError: a route that matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for route in routing:
        if not any(fnmatch.fnmatchcase(name, route.match) for name in names):
            raise AttachError(
                f"the route of {route.match} by {route.compression} matches no parameter of the model; its names are "
                f"like {', '.join(names[:3])}. Mend it in the plan file, or take it out."
            )


def _warn_of_sizes(phases: Phases, model: nn.Module) -> None:
    """Warns where a schedule's sizes ask for what this model is too small for."""
    num_bytes = sum(p.numel() * p.itemsize for p in model.parameters() if p.requires_grad)
    remarks = (plan.schedule.remark(num_bytes) for plan in phases.plans)
    for remark in dict.fromkeys(filter(None, remarks)):
        warnings.warn(remark, stacklevel=3)


def _pilot(
    model: nn.Module,
    optimizers: Optimizers,
    transport: Transport,
    search: PlanSearch,
    left: frozenset[str],
    habits: Habits,
) -> Pilot:
    """Probes the wire for the plan that will be chosen."""
    from tightwire.probe import probe

    trained = [p for name, p in model.named_parameters() if p.requires_grad and name not in left]
    num_bytes = sum(p.numel() * p.itemsize for p in trained)
    # Where messages begin: copies, or NCCL, are then in what is measured.
    at = next(model.parameters()).device
    cluster = probe(transport, budget_s=search.probe_s, programs=search.probed, device=at)
    return Pilot(model, optimizers, as_native(cluster, search.programs), search, num_bytes, habits, left)


def _forget(plan_file: PlanFile) -> None:
    """Keeps nothing."""


def _tuner(phases: Phases, transport: Transport, seed: int) -> Tuner | None:
    """Prepares the search for a schedule, where the plan says `auto`; alone there is nothing to search for."""
    if transport.size == 1 or not any(isinstance(plan.schedule, Auto) for plan in phases.plans):
        return None
    if len(phases.plans) > 1:
        raise AttachError(
            f"{phases} has phases, and the schedule auto is searched for over a whole run; name one for each phase."
        )
    return Tuner(phases.plans[0], transport, seed)
