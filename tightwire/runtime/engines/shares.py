"""Shares of parameters: workers step alone, and average a few elements after every step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire import kernels
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.round import Round
from tightwire.buckets import Bucket, plan_layout
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine
from tightwire.runtime.engines.memory import drop_unless_finite, require_one_copy
from tightwire.runtime.membership import Called
from tightwire.sync import Sparta


class ShareEngine(BaseEngine):
    """After each step, workers make the elements that the round's seed chooses their mean (sparta).

    A worker whose data is over takes part until all are done, counting nothing. The flush makes all models their mean.
    A step with a NaN or Inf is dropped by the worker that made it.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.sync, Sparta), plan.sync
        require_one_copy(context.optimizers.members, str(plan.sync), "choose bsp")
        self._context, self._parameters = context, parameters
        by_dtype: dict[torch.dtype, list[int]] = defaultdict(list)
        for position, parameter in enumerate(parameters.values()):
            by_dtype[parameter.dtype].append(position)
        self._models = [Bucket(layout) for layout in plan_layout(parameters, list(by_dtype.values()))]
        self._places = [
            torch.empty(plan.sync.kept(model.layout.numel), dtype=torch.int64, device=model.flat.device)
            for model in self._models
        ]
        self._chosen = {
            f"chosen {number}": torch.empty_like(model.flat[: len(places)])
            for number, (model, places) in enumerate(zip(self._models, self._places, strict=True))
        }
        exactly = context.exactly()
        self._exchange = exactly.exchange(self._chosen, plan)
        self._whole = exactly.exchange(parameters, plan)
        self._roll = context.roll(0)
        self._number = 0

    def before_step(self) -> None:  # noqa: D102
        self.skipped += drop_unless_finite(self._parameters.values())

    def more_gradients(self) -> None:  # noqa: D102
        self.before_step()

    def after_step(self, step: int) -> None:  # noqa: D102
        start_s = time.perf_counter()
        self.planned_bytes += self._roll.bytes_sent
        self._average(self._roll.call(present=True), counts=True)
        self.exposed_s = time.perf_counter() - start_s

    @torch.no_grad()
    def flush(self) -> None:
        """Takes part in the others' rounds; then makes all models their mean."""
        called_bytes = self._roll.until_all_are_finished(lambda called: self._average(called, counts=False))
        self.planned_bytes += called_bytes
        self.planned_bytes += self._whole.bytes_in(0)
        self._whole.begin(Round(number=0))
        for bucket in self._whole.buckets:
            bucket.pack({name: self._parameters[name].detach() for name in bucket.views})
        self._whole.end()
        self._whole.wait()
        for bucket in self._whole.buckets:
            bucket.unpack({name: self._parameters[name] for name in bucket.views})

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"rounds": self._number, "memory": {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._number = state["rounds"]

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._number = rounds

    def close(self) -> None:  # noqa: D102
        self._exchange.close()
        self._whole.close()
        self._roll.close()

    @torch.no_grad()
    def _average(self, called: Called, *, counts: bool) -> None:
        """Makes the round's elements the mean of those that train."""
        self.rounds += 1
        self._number += 1
        self.planned_bytes += self._exchange.bytes_in(self._number)
        share = self._context.transport.size / max(called.present, 1) if counts else 0.0
        buckets = {name: view for bucket in self._exchange.buckets for name, view in bucket.views.items()}
        values = [buckets[name] for name in self._chosen]
        self._exchange.begin(Round(number=self._number))
        for number, (model, places, value) in enumerate(zip(self._models, self._places, values, strict=True)):
            model.pack({name: self._parameters[name].detach() for name in model.views})
            self._draw(number, model.flat, places)
            torch.index_select(model.flat, 0, places, out=value)
            if share != 1.0:
                value.mul_(share)
        self._exchange.end()
        if not self._exchange.wait():
            self.skipped += 1
            return
        for model, places, value in zip(self._models, self._places, values, strict=True):
            model.flat.index_copy_(0, places, value)
            model.unpack({name: self._parameters[name] for name in model.views})

    def _draw(self, number: int, flat: Tensor, places: Tensor) -> None:
        if places.numel():
            seed = message_seed(self._context.seed + self._number, 0, number)
            kernels.of(flat).shared_indices(flat.numel(), seed, places)
