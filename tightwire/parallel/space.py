"""Every legal layout of a transformer on a cluster: all products of parallel dimensions that leave no rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tightwire.cluster import Cluster
from tightwire.parallel.layout import (
    Layout,
    Recompute,
    Schedule,
    Shard,
    divisors,
    layers_of_stage,
    legal_stages,
)
from tightwire.parallel.transformer import Transformer

MAX_MICRO_BATCH = 16
MAX_CHUNKS = 8
LEAST_TOKENS = 2048  # of a part of a sequence


@dataclass(frozen=True, kw_only=True)
class LayoutSpace:
    """The layouts of one batch.

    Attributes:
        model: that is cut.
        cluster: its workers are the devices.
        batch: sequences of one step.
        fused: whether attention is, so that recomputing it alone spares nothing.
    """

    model: Transformer
    cluster: Cluster
    batch: int
    fused: bool

    def __iter__(self) -> Iterator[tuple[Layout, int]]:
        """Yields every layout with its number of micro-batches."""
        for tensor, context, pipeline, data in self._degrees():
            for micro_batch in self._micro_batches(data):
                micro_batches = self.batch // (data * micro_batch)
                for how in self._details(tensor, context, pipeline, data, micro_batch, micro_batches):
                    yield how, micro_batches

    def _degrees(self) -> Iterator[tuple[int, int, int, int]]:
        model, workers = self.model, self.cluster.workers
        stages = legal_stages(model)
        for tensor in (t for t in divisors(workers) if model.heads % t == 0):
            rest = workers // tensor
            parts = (c for c in divisors(rest) if model.seq_len % c == 0)
            for context in (c for c in parts if c == 1 or model.seq_len // c >= LEAST_TOKENS):
                left = rest // context
                for pipeline in (p for p in divisors(left) if p in stages):
                    data = left // pipeline
                    if self.batch % data == 0:
                        yield tensor, context, pipeline, data

    def _micro_batches(self, data: int) -> list[int]:
        share = self.batch // data
        return [b for b in divisors(share) if b <= MAX_MICRO_BATCH]

    def _details(
        self, tensor: int, context: int, pipeline: int, data: int, micro_batch: int, micro_batches: int
    ) -> Iterator[Layout]:
        """Yields what remains open once the degrees are chosen; each option only where it can matter."""
        base = Layout(
            tensor=tensor, context=context, pipeline=pipeline, data=data, micro_batch=micro_batch,
            sequence=tensor > 1 and self.model.seq_len // context % tensor == 0,
        )  # fmt: skip
        recomputes: Sequence[Recompute] = ("none", "full") if self.fused else ("none", "selective", "full")
        for spread in self._spreads(base):
            for stages in self._schedules(base, micro_batches):
                for expert in self._experts(base):
                    for recompute in recomputes:
                        how = dataclasses.replace(
                            base, recompute=recompute, expert=expert, **spread, **stages
                        )
                        yield how
                        if context > 1 and self.model.heads // tensor % context == 0:
                            yield dataclasses.replace(how, context_by="ulysses")

    def _spreads(self, base: Layout) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"shard": "none"}]
        if base.data * base.context == 1:
            return found
        shards: tuple[Shard, ...] = ("zero1", "zero2", "zero3")
        found += [{"shard": shard} for shard in shards]
        inner = base.tensor * base.context
        for level in self.cluster.levels[:-1]:
            near = level.workers // inner if level.workers % inner == 0 else 0
            if 1 < near < base.data and base.data % near == 0:
                found += [{"shard": shard, "shard_group": near} for shard in ("zero1", "zero3")]
        if base.pipeline > 1 and len(self.cluster.levels) > 1:
            found += [spread | {"outermost": "data"} for spread in found]
        return found

    def _schedules(self, base: Layout, micro_batches: int) -> list[dict[str, Any]]:
        if base.pipeline == 1:
            return [{}]
        schedules: tuple[Schedule, ...] = ("1f1b", "zero-bubble")
        found: list[dict[str, Any]] = [{"schedule": schedule} for schedule in schedules]
        layers = layers_of_stage(self.model, base)
        if micro_batches % base.pipeline == 0:
            chunks = [v for v in divisors(layers) if 1 < v <= MAX_CHUNKS]
            found += [{"schedule": "interleaved", "chunks": v} for v in chunks]
        return found

    def _experts(self, base: Layout) -> list[int]:
        if not self.model.experts:
            return [1]
        ranks = base.data * base.context
        return [e for e in divisors(self.model.experts) if ranks % e == 0]
