"""A hook for FSDP2: sharded inside each group of ranks, averaged between groups by any compression of a plan."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire.answers import DEFAULTS, Refusal, Sender, text_with
from tightwire.architecture.round import Round
from tightwire.averaging import Averager, BucketAverager, build_averager
from tightwire.averaging.bucket import Spared
from tightwire.buckets import Bucket, BucketLayout, plan_layout
from tightwire.errors import AttachError, PlanError
from tightwire.files import own_version
from tightwire.integrations._parts import named_plan
from tightwire.integrations._shards import (
    connect_across,
    fsdp_units,
    local_part,
    mesh_of,
    sharding_groups,
)
from tightwire.integrations.fsdp_rounds import FSDPRounds
from tightwire.plan import Plan
from tightwire.runtime.agreement import copy_from_first, require_agreement, wire_facts
from tightwire.runtime.engines.memory import Named, load_memory, memory
from tightwire.runtime.outer import MakeOuter
from tightwire.sync import Rounds
from tightwire.transport import Counting, Transport, current


def fsdp_hook(
    model: nn.Module,
    plan: Plan | str,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    outer: MakeOuter | None = None,
    transport: Transport | None = None,
    seed: int = 0,
) -> FSDPHook | FSDPRounds:
    """Has groups of FSDP2 agree with one another as `plan` says, on gradients in every step or on parameters in rounds.

        tw.init()
        mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("replicas", "shards"))
        for block in model.blocks:
            fully_shard(block, mesh=mesh["shards"])
        fully_shard(model, mesh=mesh["shards"])
        hook = tw.fsdp_hook(model, "bsp/allreduce/int8+ef")

    Each group shards the model over its own mesh, one-dimensional: FSDP reduces inside it, and each shard agrees with
    the same shard of the other groups. Only that slow leg is compressed.

    Parameters and buffers become the first group's at once, unless they are on the meta device: load or seed those
    alike, under local methods beforehand. Under `bsp` gradients are averaged right after FSDP has reduced them; where
    the model has a `set_gradient_divide_factor` of its own, they are added up, as native HSDP does. Under local methods
    (`local:8`, `diloco:64`) every group trains alone and agrees every so many steps of `optimizer`:

        with tw.fsdp_hook(model, "diloco:64/allreduce/int4+ef", optimizer=optimizer):
            train()  # the loop as ever

    Args:
        model: after `fully_shard`; every FSDP module in it, with one parameter group each.
        plan: of sync `bsp` over all-reduce, whose schedule is left out, for FSDP orders its reductions itself; or a
            local method over all-reduce.
        optimizer: of the model's parameters, made after `fully_shard`; for local methods. A list: see `attach`.
        outer: see `attach`.
        transport: between all ranks; by default the one that `tightwire.init()` joined.
        seed: of stochastic codecs, the same on every rank.

    Contract: every rank, after `fully_shard`; blocks until all have arrived.

    Raises:
        PlanError: a plan that cannot work, or not under FSDP.
        AttachError: no FSDP module, native HSDP (a two-dimensional mesh), meshes that do not divide the ranks, or a
            model on the meta device for a local method.
        MismatchError: ranks with different plans, seeds, or versions of what messages look like.
    """
    plan = named_plan(plan, "FSDP")
    _require_fsdp_can(plan)
    transport = current() if transport is None else transport
    if not isinstance(plan.sync, Rounds):
        return FSDPHook(model, plan, transport, seed)
    if optimizer is None:
        raise AttachError(
            f"{plan.sync} counts the optimizer's steps: tw.fsdp_hook(model, {str(plan)!r}, optimizer=optimizer)."
        )
    optimizers = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    return FSDPRounds(model, optimizers, plan, transport, seed=seed, outer=outer)


@final
class FSDPHook:
    """Averages gradient shards between groups of FSDP2 in every step; made by `fsdp_hook`.

    All state is kept by parameter name; a rank's checkpoint holds the leftovers of its own shards. What a backward pass
    leaves over is kept when the next one begins, or a checkpoint is taken; a pass with a NaN or Inf leaves no trace.

    Attributes:
        rounds: backward passes averaged so far, those before a checkpoint included.
        replicas: how many groups average with one another.
    """

    def __init__(self, model: nn.Module, plan: Plan, transport: Transport, seed: int) -> None:
        self.plan, self.rounds = plan, 0
        self._world, self._seed, self._spared = transport, seed, Spared()
        self._units = {unit.name: unit for unit in fsdp_units(model)}
        groups = sharding_groups(transport, mesh_of(model, list(self._units.values())))
        settings = {"version of tightwire": own_version(), "plan": plan, "seed": seed}
        require_agreement(transport, settings | wire_facts([plan.compression]))
        across = connect_across(transport, groups)
        tensors = [local_part(tensor) for tensor in (*model.parameters(), *model.buffers())]
        if not any(tensor.is_meta for tensor in tensors):
            copy_from_first(across, tensors)
        self._across = Counting(across)
        self.replicas = self._across.size
        self._averagers: dict[str, BucketAverager] = {}
        self._under_way: dict[str, BucketAverager] = {}
        self._saved: dict[str, Mapping[str, Tensor]] = {}
        self._announced_bytes = 0
        if self.replicas > 1:
            for name, unit in self._units.items():
                first: Any = unit.modules[0]
                first.set_all_reduce_hook(functools.partial(self._average, name))

    @property
    def sent_bytes(self) -> int:
        """Payload bytes that this rank sent between groups so far, counted."""
        return self._across.bytes_sent

    @property
    def planned_bytes(self) -> int:
        """Payload bytes that this rank sends in the rounds begun here, by formula and agreed lengths."""
        return self._announced_bytes - self._spared.num_bytes

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint, by parameter name; tensors are copies. Call it between steps."""
        self._end_round()
        return {
            "version": 1,
            "plan": str(self.plan),
            "rank": self._world.rank,
            "workers": self._world.size,
            "rounds": self.rounds,
            "memory": {**self._saved, **memory(self._averagers.values())},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` returned on this rank, between two steps.

        After a change of the number of workers only rounds are counted on, and leftovers and momenta are dropped, with
        a warning: shards are cut otherwise then.

        Raises:
            AttachError: a checkpoint of another version or rank.
        """
        same_world = state.get("workers") == self._world.size
        if state.get("version") != 1 or (same_world and state["rank"] != self._world.rank):
            raise AttachError(
                f"this is version {state.get('version')} of a hook's state, of rank {state.get('rank')}; rank "
                f"{self._world.rank} loads version 1 of its own."
            )
        self.rounds = state["rounds"]
        self._averagers.clear()
        self._under_way.clear()
        self._saved = dict(state["memory"]) if same_world else {}
        if not same_world:
            warnings.warn(
                f"the checkpoint was made by {state['workers']} workers, this run has {self._world.size}: leftovers "
                "and momenta are dropped, and what they held of old gradients is lost.",
                stacklevel=2,
            )

    @torch.no_grad()
    def _average(self, name: str, shard: Tensor) -> None:
        """Averages one module's shard in place; FSDP calls it after its reduce-scatter."""
        if name in self._under_way or not self._under_way:
            self._end_round()
            self.rounds += 1
        averager = self._averager_of(name, shard)
        averager.bucket.flat.copy_(shard)
        self._announced_bytes += averager.bytes_in(self.rounds)
        averager.run(Round(number=self.rounds, seed=self._seed + self.rounds))
        shard.copy_(averager.bucket.flat)
        if self._units[name].adds_up():
            shard.mul_(self.replicas)
        self._under_way[name] = averager

    def _end_round(self) -> None:
        under_way, self._under_way = self._under_way, {}
        if all(averager.finite for averager in under_way.values()):
            for averager in under_way.values():
                averager.keep()

    def _averager_of(self, name: str, shard: Tensor) -> BucketAverager:
        if name not in self._averagers:
            layout = _layout(self._units[name].slots, shard)
            number = list(self._units).index(name)
            build = functools.partial(self._build, layout, number)
            bucket = Bucket(layout)
            averager = BucketAverager(
                bucket, self.plan.compression, build, workers=self.replicas, spared=self._spared
            )
            saved: Named = {slot: self._saved.pop(slot) for slot in bucket.views if slot in self._saved}
            if saved:
                load_memory([averager], saved)
            self._averagers[name] = averager
        return self._averagers[name]

    def _build(self, layout: BucketLayout, number: int, sender: Sender) -> Averager:
        return build_averager(self.plan.architecture, sender, self._across, bucket=layout, number=number)


def _require_fsdp_can(plan: Plan) -> None:
    refusal = None
    rounds = isinstance(plan.sync, Rounds)
    if str(plan.sync) != "bsp" and not rounds:
        refusal = Refusal(
            reason=f"groups of FSDP cannot train by {plan.sync}: they agree on the gradients of every step (bsp), or "
            "on parameters every so many steps (local methods).",
            nearest=(text_with(plan, sync="bsp", schedule=DEFAULTS["schedule"]),),
        )
    elif isinstance(plan.sync, Rounds) and plan.sync.optimizer_state == "momenta":
        refusal = Refusal(
            reason=f"{plan.sync} makes momenta anew on whole parameters, and FSDP has shards of them.",
            nearest=("local:8",),
        )
    elif isinstance(plan.sync, Rounds) and plan.sync.quorum_of is not None:
        refusal = Refusal(
            reason=f"{plan.sync} ends rounds without slow workers, and those that hold shards of one model would "
            "not all end the same ones.",
            nearest=(f"{plan.sync.name}:{plan.sync.steps_per_round}",),
        )
    elif plan.architecture.name != "allreduce":
        refusal = Refusal(
            reason=f"groups of FSDP agree on the mean of each shard, and {plan.architecture} brings none.",
            nearest=(text_with(plan, architecture="allreduce", schedule=DEFAULTS["schedule"]),),
        )
    elif not rounds and str(plan.schedule) != DEFAULTS["schedule"]:
        refusal = Refusal(
            reason=f"FSDP cannot schedule by {plan.schedule}: it reduces each module when its backward is over.",
            nearest=(text_with(plan, schedule=DEFAULTS["schedule"]),),
        )
    if refusal:
        raise PlanError(str(refusal))


def _layout(slots: Sequence[tuple[str, tuple[int, ...]]], shard: Tensor) -> BucketLayout:
    """Returns the layout of a module's flat shard.

    Raises:
        AttachError: FSDP's own layout is another one.
    """
    sizes = [math.prod(shape) for _, shape in slots]
    if sum(sizes) != shard.numel():
        raise AttachError(
            f"FSDP hands over {shard.numel()} elements where the shards of {slots[0][0]} and its like have "
            f"{sum(sizes)}: a part of them is frozen. Give frozen parameters a fully_shard of their own."
        )
    parts = zip(slots, shard.split(sizes), strict=True)
    return plan_layout({name: part.view(shape) for (name, shape), part in parts}, [range(len(slots))])[0]
