"""attach(model, optimizer, plan): the one place that touches the user's objects.

The file is private because `tightwire.attach` is the function; a module of that name would hide it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import logging
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from tightwire import files
from tightwire.architecture import AllReduce, ParameterServer, Wiring, synthesise
from tightwire.catalogue import parse_compression
from tightwire.cluster import Cluster
from tightwire.cluster.wiring import wiring_of
from tightwire.devices import device_named, kinds_of, require_one_device
from tightwire.errors import AttachError
from tightwire.files import own_version
from tightwire.plan import Phases, Plan, PlanFile
from tightwire.planner import Allowance
from tightwire.runtime.agreement import copy_from_first, model_facts, require_agreement, wire_facts
from tightwire.runtime.auto import PROBE_BUDGET_S, WATCHED, Pilot, PlanSearch
from tightwire.runtime.carried import Carried, Stateful
from tightwire.runtime.context import RunContext
from tightwire.runtime.groups import Groups, form, resolve
from tightwire.runtime.guard import require_attachable
from tightwire.runtime.keeping import Keeping, require_keepable
from tightwire.runtime.learnt import Learnt, facts_of
from tightwire.runtime.membership import Membership
from tightwire.runtime.outer import MakeOuter
from tightwire.runtime.phases import spelled_out
from tightwire.runtime.race import Race
from tightwire.runtime.run import Buffers, Run
from tightwire.runtime.step import Optimizers, plain_optimizer
from tightwire.runtime.trace import Tracer
from tightwire.runtime.tuning import Tuner
from tightwire.schedule import Auto
from tightwire.sync import Rounds, Served
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
    plan: Plan | Phases | PlanFile | Race | str | pathlib.Path = "auto",
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
        buffers: `start` makes buffers equal once; `every-step` copies rank 0's after every step, as DDP does.
        scaler: the AMP GradScaler, if there is one, so that leftovers are kept in unscaled units.
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
        keep: a plan file for what `auto` or a race chooses: where it exists and was made for this model, so many
            workers, this version and about this wire, its plan is taken at once. Rank 0 reads and writes it.
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
        MismatchError: ranks that disagree, named with the difference, on every rank.
        PeerError: a rank that did not arrive within the transport's deadline.
    """
    transport = current() if transport is None else transport
    race = plan if isinstance(plan, Race) else Race.parse(plan) if isinstance(plan, str) else None
    is_auto = plan == "auto" or race is not None
    plan_file = PlanFile(plan=WATCHED) if is_auto or isinstance(plan, Race) else _read_plan(plan)
    entrance = transport.door if isinstance(transport, Single) else None
    chosen = plan_file.phases()
    spelled_out(chosen)
    listed = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    optimizers = Optimizers([plain_optimizer(member) for member in listed])
    model = _uncompiled(model)
    left = _left(model, leave)
    shared = resolve(model, groups or {}, transport)
    left |= shared.keys()
    settings: dict[str, object] = {
        "version of tightwire": own_version(),
        "plan": _asked(race, allow) if is_auto else chosen,
        "routing": plan_file.routing,
        "optimizer": " and ".join(type(member).__name__ for member in optimizers.members),
        "buffers": buffers,
        "seed": seed,
        "over": over,
        "measured costs of programs": _costs(plan_file),
        **optimizers.hyperparameters(),
        "program that is made for the cluster's links": _made(plan_file, chosen),
    }
    if any(p.architecture.is_levelled for p in chosen.plans):
        settings["workers per node (LOCAL_WORLD_SIZE)"] = workers_per_node()
    compressions = [
        *(phase.compression for phase in chosen.plans),
        *(parse_compression(r.compression) for r in plan_file.routing),
    ]
    adder = switch()
    if entrance is not None:
        _require_elastic(chosen, is_auto)
    for phase in chosen.plans:
        _require_servable(phase, transport.size if entrance is None else None, buffers)
        if (
            isinstance(phase.architecture, AllReduce)
            and phase.architecture.is_switched
            and transport.size > 1
        ):
            settings["switch that adds"] = phase.architecture.require_switch(adder).address
    settings["kind of device"] = kinds_of(model.parameters())
    common = settings | wire_facts(compressions) | model_facts(model, left)
    if entrance is None:
        require_agreement(transport, common)
    else:  # newcomers get the options that optimizers have by then
        common = {key: fact for key, fact in common.items() if key not in optimizers.hyperparameters()}
    require_attachable(model, optimizers)
    require_one_device(dict(model.named_parameters()))
    transport = reaching(transport, next(model.parameters()).device, over)
    if transport.rank == 0 and transport.size > 1:
        _warn_of_sizes(chosen, model)
    counting = Counting(transport)
    sharings = form(counting, shared) if entrance is None else ()
    pilot = None
    if is_auto and transport.size > 1:
        facts = facts_of(model_facts(model, left), transport.size, workers_per_node(), _asked(race, allow))
        learnt = Learnt(pathlib.Path(keep), facts) if keep is not None else None
        kept = learnt.recall(transport) if learnt is not None else None
        if kept is not None:
            plan_file, chosen = kept, kept.phases()
        else:
            search = PlanSearch(allow=allow, race=race, keep=learnt.keep if learnt is not None else _forget)
            pilot = _pilot(model, optimizers, transport, search, left)
            chosen = Phases.parse(pilot.watched)
    context = RunContext(
        transport=counting,
        routing=plan_file.routing,
        tracer=Tracer(),
        seed=seed,
        gradient_scale=_scale_of(scaler, next(model.parameters()).device),
        model=model,
        optimizers=optimizers,
        membership=Membership(tuple(range(transport.size)), door=entrance),
        left=left,
        groups=sharings,
        habits=pilot.habits if pilot is not None else None,
        awaits_means=scaler is not None,
        outer=outer,
        leaves_by=over,
        workers_per_node=workers_per_node(),
        wiring=_wiring(plan_file, chosen),
        switch=adder,
        costs=pilot.costs if pilot is not None else _costs(plan_file),
    )
    for sharing in sharings:
        others = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        require_agreement(sharing.transport.inner, model_facts(model, others - {*sharing.names}))
        ours = [p for name, p in model.named_parameters() if name in sharing.names]
        copy_from_first(sharing.transport.inner, ours)
    named = [*model.named_parameters(), *model.named_buffers()]
    if entrance is None:
        copy_from_first(transport, [tensor for name, tensor in named if name not in left])
    carried = Carried(carry) if carry else None
    if remember:
        require_keepable(chosen, is_auto=is_auto, is_elastic=entrance is not None, every=remember)
    place = shelf() if remember else None
    if remember and place is None:
        log.warning(
            "attach(remember=%d): no torchrun started this worker, so that nothing starts it anew; nothing is kept.",
            remember,
        )
    which = f"{next(_attached)} {sorted((key, str(fact)) for key, fact in common.items())}"
    return Run(
        model,
        chosen,
        context,
        buffers=buffers,
        predicted={
            name: value for name, value in plan_file.predicted.items() if isinstance(value, int | float)
        },
        why=plan_file.why,
        pilot=pilot or _tuner(chosen, transport, seed),
        facts=common,
        carried=carried,
        keeping=Keeping(place, model, context, carried, every=remember, run=which)
        if place is not None
        else None,
    )


def _scale_of(scaler: Scaler | None, at: torch.device) -> Callable[[], float | Tensor]:
    """Returns what tells the present loss scale: on a device as a tensor there, for which the host does not wait."""
    if scaler is None:
        return lambda: 1.0
    if device_named(at).is_host or not isinstance(scaler, GradScaler):
        return scaler.get_scale
    if not scaler.is_enabled():
        return lambda: 1.0
    return lambda: scaler.scale(torch.ones((), device=at))


def _require_elastic(chosen: Phases, is_auto: bool) -> None:
    """Makes sure that a plan can be carried out by members who come and go.

    Raises:
        AttachError: it is searched for by all together, needs whole nodes, or has servers.
    """
    if is_auto or any(isinstance(plan.schedule, Auto) for plan in chosen.plans):
        raise AttachError(
            "tightwire.init(elastic=True) was asked for with plan or schedule auto, which all workers "
            "search for together while none may come or go; find a plan without elastic=True, or by `tightwire plan`, "
            "and name it."
        )
    if levelled := [str(plan) for plan in chosen.plans if plan.architecture.is_levelled]:
        raise AttachError(
            f"tightwire.init(elastic=True) was asked for with {levelled[0]}, which needs whole nodes, and workers come "
            "and go alone; choose a program without levels, such as bsp/allreduce:ring."
        )
    if served := [
        str(plan) for plan in chosen.plans if isinstance(plan.sync, Served) and not plan.sync.survives
    ]:
        raise AttachError(
            f"tightwire.init(elastic=True) was asked for with {served[0]}, whose servers cannot yet do without a "
            "member that dies; asp/ps, ssp:3/ps and bsp/ps:servers=1 can, and local:8 or diloco:30 over an all-reduce. "
            "Or leave elastic=True out: under ps:servers=1 workers may die then, and the server may not."
        )


def _require_servable(plan: Plan, num_ranks: int | None, buffers: Buffers) -> None:
    """Makes sure that servers leave somebody to train, and that nothing has workers meet who need not.

    Args:
        plan: to be carried out.
        num_ranks: None where members come and go.
        buffers: as they are to be kept.

    Raises:
        PlanError: as many servers as processes.
        AttachError: buffers that are to be equal after every step.
    """
    architecture = plan.architecture
    is_served = plan.sync.is_served
    if isinstance(architecture, ParameterServer) and architecture.servers:
        if num_ranks is not None:
            architecture.roles(num_ranks)
        is_served = True
    is_served |= isinstance(plan.sync, Rounds) and plan.sync.quorum_of is not None
    if is_served and buffers == "every-step" and num_ranks != 1:
        raise AttachError(
            f"{plan} lets workers go on without each other, and buffers='every-step' has them meet after every step; "
            "leave buffers at 'start'."
        )


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


def _warn_of_sizes(phases: Phases, model: nn.Module) -> None:
    """Warns where a schedule's sizes ask for what this model is too small for."""
    num_bytes = sum(p.numel() * p.itemsize for p in model.parameters() if p.requires_grad)
    remarks = (plan.schedule.remark(num_bytes) for plan in phases.plans)
    for remark in dict.fromkeys(filter(None, remarks)):
        warnings.warn(remark, stacklevel=3)


def _pilot(
    model: nn.Module, optimizers: Optimizers, transport: Transport, search: PlanSearch, left: frozenset[str]
) -> Pilot:
    """Probes the wire for the plan that will be chosen."""
    from tightwire.probe import probe

    trained = [p for name, p in model.named_parameters() if p.requires_grad and name not in left]
    num_bytes = sum(p.numel() * p.itemsize for p in trained)
    at = next(
        model.parameters()
    ).device  # where messages begin: copies, or NCCL, are then in what is measured
    cluster = probe(transport, budget_s=PROBE_BUDGET_S, device=at)
    return Pilot(model, optimizers, cluster, search, num_bytes)


def _asked(race: Race | None, allow: Allowance) -> str:
    """Returns what all ranks must have asked for alike."""
    return f"auto, {allow}" if race is None else f"race of {race.budget}, {race.share:g}, {allow}"


def _forget(plan_file: PlanFile) -> None:
    """Keeps nothing."""


def _costs(plan_file: PlanFile) -> dict[str, tuple[float, float]]:
    """Returns what programs took on the cluster that a plan file was derived from, which all ranks read alike."""
    cluster = plan_file.measured.get("cluster")
    fits = cluster.get("fits", ()) if isinstance(cluster, dict) else ()
    return {
        fit["program"]: (fit["alpha_s"], fit["beta_s_per_byte"])
        for fit in fits
        if fit.get("source") == "measured"
    }


def _wiring(plan_file: PlanFile, chosen: Phases) -> Wiring | None:
    """Returns the links of the cluster that a plan file was derived from, where a program is made for them."""
    cluster = plan_file.measured.get("cluster")
    if cluster is None or not any(
        isinstance(plan.architecture, AllReduce) and plan.architecture.is_made for plan in chosen.plans
    ):
        return None
    return wiring_of(files.check(cluster, Cluster, "the plan file's cluster"))


def _made(plan_file: PlanFile, chosen: Phases) -> str:
    """Returns a digest of the program that this rank makes for the links: another version may make another one."""
    wiring = _wiring(plan_file, chosen)
    if wiring is None:
        return "none"
    transfers = repr(synthesise(wiring).program.transfers).encode()
    return hashlib.sha256(transfers).hexdigest()[:16]


def _tuner(phases: Phases, transport: Transport, seed: int) -> Tuner | None:
    """Prepares the search for a schedule, where the plan says `auto`; alone there is nothing to search for."""
    if transport.size == 1 or not any(isinstance(plan.schedule, Auto) for plan in phases.plans):
        return None
    if len(phases.plans) > 1:
        raise AttachError(
            f"{phases} has phases, and the schedule auto is searched for over a whole run; name one for each phase."
        )
    return Tuner(phases.plans[0], transport, seed)


def _read_plan(plan: Plan | Phases | PlanFile | str | pathlib.Path) -> PlanFile:
    if isinstance(plan, PlanFile):
        return plan
    if isinstance(plan, pathlib.Path) or str(plan).endswith((".yaml", ".yml")):
        return PlanFile.read(str(plan))
    return PlanFile(plan=str(plan))
