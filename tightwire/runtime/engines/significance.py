"""Significant updates: workers step alone, and tell what matters."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.buckets import Bucket, plan_layout
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine
from tightwire.runtime.engines.memory import drop_unless_finite
from tightwire.schedule import TensorFacts
from tightwire.sync import Gaia
from tightwire.transport import Transport

INDEX_BYTES = 4
# Counts travel as two float32, which hold whole numbers up to 2**24.
BASE = 1 << 16


class SignificanceEngine(BaseEngine):
    """After each step, workers add up the elements whose updates are significant (gaia).

    All hold the same agreed parameters c; a worker trains on x = c + what it has not sent yet. A step with a NaN or
    Inf in its gradients is dropped by its own worker.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._context, self._parameters = context, parameters
        assert isinstance(plan.sync, Gaia), plan.sync
        self._s = plan.sync.s
        facts = [TensorFacts(num_bytes=p.nbytes, kind=(p.dtype, p.device)) for p in parameters.values()]
        partition = plan.schedule.partition(facts)
        self._agreed = [Bucket(layout) for layout in plan_layout(parameters, partition)]
        self._updates = [Bucket(agreed.layout) for agreed in self._agreed]
        self._channel: Transport = context.transport.channel()
        self._rank, self._size = context.transport.rank, context.transport.size
        self._counts = 2 * len(self._agreed)
        self._roll = context.roll(self._counts * self._size)
        self._number = 0
        self._agree_on_present()

    def before_step(self) -> None:  # noqa: D102
        self.skipped += drop_unless_finite(self._parameters.values())

    def more_gradients(self) -> None:  # noqa: D102
        self.before_step()

    def after_step(self, step: int) -> None:  # noqa: D102
        start_s = time.perf_counter()
        self._round(self._s / math.sqrt(self._number + 1), present=True)
        self.exposed_s = time.perf_counter() - start_s

    def flush(self) -> None:  # noqa: D102
        while self._round(0.0, present=False) > 0:
            pass

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        named = ((name, view) for bucket in self._agreed for name, view in bucket.views.items())
        return {
            "rounds": self._number,
            "memory": {name: {"agreed": view.clone()} for name, view in named},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._number = state["rounds"]
        for bucket in self._agreed:
            bucket.pack({name: state["memory"][name]["agreed"] for name in bucket.views})

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._number = rounds
        self._agree_on_present()

    def close(self) -> None:  # noqa: D102
        self._roll.close()
        self._channel.close()

    def _agree_on_present(self) -> None:
        for agreed in self._agreed:
            agreed.pack({name: self._parameters[name].detach() for name in agreed.views})

    @torch.no_grad()
    def _round(self, threshold: float, *, present: bool) -> int:
        """Exchanges what is significant; returns how many ranks' training goes on."""
        self.rounds += 1
        self._number += 1
        chosen = [self._choose(a, u, threshold) for a, u in zip(self._agreed, self._updates, strict=True)]
        counts, going = self._tell([len(indices) for indices in chosen], present=present)
        share = 1.0 / max(going, 1) if going else 1.0 / self._size
        for number, (agreed, update) in enumerate(zip(self._agreed, self._updates, strict=True)):
            indices = chosen[number]
            values = update.flat[indices]
            update.flat[indices] = 0
            arrived = self._gather(indices, values, [count[number] for count in counts], tag=number)
            for others, what in arrived:  # in the order of ranks, so that all end with the same bits
                agreed.flat.index_add_(0, others.long(), what, alpha=share)
            update.flat.add_(agreed.flat)
            update.unpack({name: self._parameters[name] for name in update.views})
        return going

    def _choose(self, agreed: Bucket, update: Bucket, threshold: float) -> Tensor:
        """Returns the indices of significant updates, of those that are numbers."""
        update.pack({name: self._parameters[name].detach() for name in update.views})
        update.flat.sub_(agreed.flat)
        update.flat.nan_to_num_(0.0, 0.0, 0.0)
        significant = update.flat.abs() > threshold * agreed.flat.abs()
        return significant.nonzero().flatten().to(torch.int32)

    def _tell(self, mine: list[int], *, present: bool) -> tuple[list[list[int]], int]:
        """Returns how many elements every rank sends of each bucket, and how many ranks' training goes on."""
        counts = torch.zeros(self._counts * self._size)
        own = [digit for count in mine for digit in divmod(count, BASE)]
        mine_at = slice(self._rank * self._counts, (self._rank + 1) * self._counts)
        counts[mine_at] = torch.tensor(own, dtype=torch.float32)
        called = self._roll.call(counts, present=present)
        self.planned_bytes += self._roll.bytes_sent
        digits = [round(value) for value in called.own.tolist()]
        told = [high * BASE + low for high, low in zip(digits[::2], digits[1::2], strict=True)]
        buckets = len(self._agreed)
        return [told[rank * buckets : (rank + 1) * buckets] for rank in range(self._size)], called.present

    def _gather(
        self, indices: Tensor, values: Tensor, counts: list[int], tag: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns the pairs of every rank, by rank; sends this rank's to all others."""
        pairs, works = [], []
        for rank, count in enumerate(counts):
            here = (
                (indices, values)
                if rank == self._rank
                else (indices.new_empty(count), values.new_empty(count))
            )
            pairs.append(here)
            if rank != self._rank and count:
                works += [self._channel.irecv(part, rank, 2 * tag + i) for i, part in enumerate(here)]
        others = [rank for rank in range(self._size) if rank != self._rank and len(indices)]
        for rank in others:
            works += [
                self._channel.isend(part, rank, 2 * tag + i) for i, part in enumerate((indices, values))
            ]
        for work in works:
            work.wait()
        self.planned_bytes += len(others) * len(indices) * (INDEX_BYTES + values.itemsize)
        return pairs
