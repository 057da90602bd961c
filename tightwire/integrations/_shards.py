"""How FSDP2 has sharded a model: which modules, over which ranks, and who holds the same shards elsewhere."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tightwire.errors import AttachError
from tightwire.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What FSDP2 gathers and reduces at once: one call of `fully_shard`, on a module or on a list of them.

    Attributes:
        name: of its first module.
        modules: that it holds.
        slots: names and shapes of this rank's shards, padded, in the order in which FSDP lays them out.
        adds_up: whether gradients are added up and divided by a factor of the user's, as token-weighted losses want it.
            Native HSDP adds them up between groups too then, where it takes the mean otherwise.
    """

    name: str
    modules: tuple[nn.Module, ...]
    slots: tuple[tuple[str, tuple[int, ...]], ...]
    adds_up: Callable[[], bool]


def fsdp_units(model: nn.Module) -> list[Unit]:
    """Returns how FSDP2 has sharded a model; empty where it has not.

    Raises:
        AttachError: a module whose parameters are in several groups of their own, as experts on other meshes are.
    """
    from torch.distributed.fsdp import FSDPModule

    names = {parameter: name for name, parameter in model.named_parameters()}
    by_state: dict[int, list[tuple[str, nn.Module]]] = {}
    for member in model.named_modules():
        if isinstance(member[1], FSDPModule):
            by_state.setdefault(id(member[1]._get_fsdp_state()), []).append(member)
    units = []
    for members in by_state.values():
        name, first = members[0]
        groups = _param_groups(first)
        if len(groups) > 1:
            raise AttachError(
                f"{name or 'the model'} has parameters on {len(groups)} meshes, which FSDP reduces apart; shard all "
                "of it over one."
            )
        for group in groups:
            slots = tuple(
                (names[p.sharded_param], tuple(p.padded_sharded_param_size)) for p in group.fsdp_params
            )
            units.append(
                Unit(
                    name=name,
                    modules=tuple(module for _, module in members),
                    slots=slots,
                    adds_up=functools.partial(_has_factor, group),
                )
            )
    return units


def _param_groups(module: nn.Module) -> list[Any]:
    """Returns FSDP's own account of a module's parameters: there is no public way to ask for their layout."""
    state = module._get_fsdp_state()  # type: ignore[operator]
    several = vars(state).get("_fsdp_param_groups")
    if several is not None:
        return list(several)
    return [
        group for group in [vars(state).get("_fsdp_param_group")] if group is not None
    ]  # before torch 2.13


def _has_factor(group: Any) -> bool:
    return group.gradient_divide_factor is not None


def mesh_of(model: nn.Module, units: Sequence[Unit]) -> list[int]:
    """Returns the world ranks that shard the model with this one, in the order of their shards.

    Raises:
        AttachError: no FSDP, native HSDP (a mesh of two dimensions), several meshes, or parameters that are whole.
    """
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    sharded = [p for p in parameters if isinstance(p, DTensor) and p.device_mesh.ndim == 1]
    meshes = {tuple(p.device_mesh.mesh.flatten().tolist()) for p in sharded}
    others = len(parameters) - len(sharded)
    if not units or others or len(meshes) != 1:
        raise AttachError(
            f"fsdp_hook needs a model that FSDP2 has sharded whole over one one-dimensional mesh; seen {len(units)} "
            f"FSDP modules, {len(meshes)} such meshes and {others} parameters outside them. Call fully_shard(module, "
            'mesh=mesh["shards"]) with the inner dimension of a device mesh alone: with both, FSDP averages between '
            "groups itself, uncompressed."
        )
    return list(next(iter(meshes)))


def sharding_groups(transport: Transport, mine: Sequence[int]) -> list[list[int]]:
    """Returns the groups that shard the model, each in the order of its shards, the same on every rank.

    Contract: every rank; blocks.

    Raises:
        AttachError: on every rank alike, groups that do not divide the ranks into equal parts.
    """
    told = [json.loads(other) for other in transport.exchange(json.dumps(list(mine)).encode())]
    groups = sorted({tuple(group) for group in told})
    counted = Counter(rank for group in groups for rank in group)
    whole = sorted(counted) == list(range(transport.size)) and set(counted.values()) == {1}
    if not whole or len({len(group) for group in groups}) != 1:
        raise AttachError(
            f"the meshes {', '.join(map(str, groups))} do not divide {transport.size} ranks into groups of one size; "
            "shard the model over the inner dimension of one device mesh that holds all ranks."
        )
    return [list(group) for group in groups]


def connect_across(transport: Transport, groups: Sequence[Sequence[int]]) -> Transport:
    """Connects this rank with those that hold the same shard in the other groups. Every rank; blocks."""
    found = [transport.group([group[place] for group in groups]) for place in range(len(groups[0]))]
    return next(group for group in found if group is not None)


def connect_inside(transport: Transport, groups: Sequence[Sequence[int]]) -> Transport:
    """Connects this rank with those that hold the other shards of its group. Every rank; blocks."""
    found = [transport.group(group) for group in groups]
    return next(group for group in found if group is not None)


@torch.no_grad()
def local_part(value: Any) -> Any:
    """Returns this rank's shard of a DTensor, sharing memory; anything else as it is."""
    from torch.distributed.tensor import DTensor

    return value.to_local().detach() if isinstance(value, DTensor) else value
