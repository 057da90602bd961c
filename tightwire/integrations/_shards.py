"""How FSDP2 has sharded a model: which modules, over which ranks, and who holds the same shards elsewhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tightwire.errors import AttachError
from tightwire.transport import Transport


def _is_sharded(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def fsdp_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules that FSDP2 shards, each with parameters of its own, by name."""
    for name, module in model.named_modules():
        if _is_sharded(module) and next(own_parameters(module), None) is not None:
            yield name, module


def own_parameters(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters that an FSDP module shards itself: those of no FSDP module inside it."""
    yield from module.named_parameters(prefix, recurse=False)
    for name, child in module.named_children():
        if not _is_sharded(child):
            yield from own_parameters(child, f"{prefix}.{name}" if prefix else name)


def mesh_of(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[int]:
    """Returns the world ranks that shard the model with this one, in the order of their shards."""
    from torch.distributed.tensor import DTensor

    meshes = {
        tuple(p.device_mesh.mesh.flatten().tolist())
        for module in modules.values()
        for _, p in own_parameters(module)
        if isinstance(p, DTensor) and p.device_mesh.ndim == 1
    }
    others = sum(not isinstance(p, DTensor) or p.device_mesh.ndim != 1 for p in model.parameters())
    if not modules or others or len(meshes) != 1:
        raise AttachError(
            f"fsdp_hook needs a model that FSDP2 has sharded whole over one one-dimensional mesh; seen {len(modules)} "
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


def sums_gradients(module: nn.Module) -> bool:
    """Whether an FSDP module adds gradients up and divides by a factor of the user's, as token-weighted losses want it.

    Native HSDP adds them up between groups too then, where it takes the mean otherwise.
    """
    state = module._get_fsdp_state()  # type: ignore[operator]  # there is no public way to ask
    groups = vars(state).get("_fsdp_param_groups") or [
        vars(state).get("_fsdp_param_group")
    ]  # before torch 2.13
    return any(group is not None and group.gradient_divide_factor is not None for group in groups)
