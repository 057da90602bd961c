"""Tightwire inside torchtitan: groups of FSDP agree as a plan says, in place of HSDP's all-reduce between them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from tightwire.integrations._shards import fsdp_units
from tightwire.integrations.fsdp import FSDPHook, fsdp_hook
from tightwire.integrations.fsdp_rounds import FSDPRounds
from tightwire.plan import Plan
from tightwire.transport import init

Spec = TypeVar("Spec")


def between_groups(
    spec: Spec,
    plan: Plan | str,
    *,
    seed: int = 0,
    on_hook: Callable[[FSDPHook | FSDPRounds], None] = lambda hook: None,
) -> Spec:
    """Returns a `ModelSpec` of torchtitan whose data-parallel replicas agree as `plan` says.

        config.model_spec = between_groups(config.model_spec, "bsp/allreduce/int8+ef")
        config.parallelism.data_parallel_replicate_degree = 2

    torchtitan then shards inside each replica, and nothing else changes: losses are divided by all ranks' tokens, so
    gradients of the groups are added up under `bsp`, as HSDP does. Under local methods each group steps with its own
    gradient, taken times the number of groups in place of the others'. Checkpoints of torchtitan hold no leftovers,
    and nothing of an outer optimizer: save where a round ends, and let the steps of a job be whole rounds.

    Args:
        spec: of any model that torchtitan parallelises with FSDP2; its two functions are wrapped.
        plan: see `tightwire.fsdp_hook`.
        seed: of stochastic codecs, the same on every rank.
        on_hook: is given the hook of each part of the model, when it is made.

    Raises:
        PlanError: when the job builds its optimizer, a plan that cannot work between groups.
    """
    stock: Any = spec

    @functools.wraps(stock.parallelize_fn)
    def parallelise(model: Any, *args: Any, parallel_dims: Any, **options: Any) -> Any:
        return stock.parallelize_fn(model, *args, parallel_dims=_without_replicas(parallel_dims), **options)

    def after_optimizers(
        optimizers: Iterable[Optimizer], parts: Sequence[nn.Module], parallel_dims: Any
    ) -> None:
        if stock.post_optimizer_build_fn is not None:
            stock.post_optimizer_build_fn(optimizers, parts, parallel_dims)
        init()
        members = list(optimizers)
        for part in parts:
            hook = fsdp_hook(part, plan, optimizer=_of(part, members), seed=seed)
            if isinstance(hook, FSDPRounds):
                for unit in fsdp_units(part):
                    first: Any = unit.modules[0]
                    first.set_gradient_divide_factor(1 / hook.replicas)
            on_hook(hook)

    wrapped: Spec = dataclasses.replace(
        stock, parallelize_fn=parallelise, post_optimizer_build_fn=after_optimizers
    )
    return wrapped


def _without_replicas(parallel_dims: Any) -> Any:
    """Returns the same meshes, for a model that takes itself to be one replica."""
    alone = copy.copy(parallel_dims)
    alone.dp_replicate = 1
    return alone


def _of(part: nn.Module, optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """Returns the optimizers of a part of the model."""
    own = {id(parameter) for parameter in part.parameters()}
    return [
        optimizer
        for optimizer in optimizers
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])
    ]
