"""Searches every product of parallel dimensions: memory first, then time, then the plan of the data-parallel leg."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tightwire.cluster import Cluster
from tightwire.errors import PlanError
from tightwire.parallel.candidates import Candidate, Layouts
from tightwire.parallel.layout import Layout, Recompute, layers_of_stage, legal_stages, require_legal
from tightwire.parallel.leg import plan_leg, replicas_of
from tightwire.parallel.memory import Memory, memory_of
from tightwire.parallel.network import Network, network_of
from tightwire.parallel.space import LayoutSpace
from tightwire.parallel.time import Accelerators, Iteration, LayerCut, TrainingCost
from tightwire.parallel.transformer import Transformer, transformer
from tightwire.planner import Allowance
from tightwire.profile.devices import DEVICES, DeviceFacts
from tightwire.units import print_gb

# A batch may be this much larger or smaller than asked, so that it can be halved often.
BATCH_SLACK = 0.05

# Minus the seconds, minus the place in the search, and what was found.
Entry = tuple[float, int, Layout, Memory, Iteration]


def parallelise(
    model: Transformer | str,
    cluster: Cluster,
    *,
    tokens_per_batch: int = 4_000_000,
    memory_bytes: int | None = None,
    device: DeviceFacts | str | None = None,
    top: int = 10,
    allow: Allowance = "lossless",
    training: TrainingCost | None = None,
    layout: Layout | None = None,
) -> Layouts:
    """Finds how to cut a transformer over a cluster: what fits in memory, fastest first.

    Args:
        model: a transformer, or the name of a known one.
        cluster: its workers are the devices.
        tokens_per_batch: of one step, over all workers; about as many are taken, so that the sequences divide well.
        memory_bytes: of each device; by default the cluster's, or the device's.
        device: what a worker is, or its name; by default the one of known memory and line, else an A100.
        top: how many layouts to return.
        allow: what the plan of the data-parallel leg may change about training, as for `recommend`.
        training: in place of `tokens_per_batch`, with more said.
        layout: the only one to look at.

    Raises:
        PlanError: no layout is legal, or none fits, with what would.
        FileError: an unknown name.

    >>> from tightwire.cluster.presets import preset
    >>> parallelise("llama3-8b", preset("dgx-h100", 1), tokens_per_batch=2**19, top=1).best.how.workers
    8
    """
    shape = transformer(model) if isinstance(model, str) else model
    on = _device(device, cluster)
    batch = sequences_of(tokens_per_batch, shape.seq_len)
    search = LayoutSearch(
        model=shape,
        cluster=cluster,
        training=training or TrainingCost(batch=batch),
        memory_bytes=memory_bytes or cluster.device_memory_bytes or on.memory_bytes,
        devices=Accelerators.of(on),
        only=layout,
        taken_for=on.name if device is None else "",
    )
    if layout is not None:
        check(shape, layout, cluster, search.training, search.memory_bytes)
    return search.run(top, allow)


def sequences_of(tokens_per_batch: int, seq_len: int) -> int:
    """Returns about as many sequences as asked, and of those within 5 % the number that can be halved most often.

    >>> sequences_of(4_000_000, 2048), sequences_of(24_576, 8192)
    (2048, 3)

    Raises:
        PlanError: less than one sequence.
    """
    asked = tokens_per_batch / seq_len
    if asked < 1:
        raise PlanError(
            f"{tokens_per_batch} tokens per batch are less than one sequence of {seq_len}; ask for more."
        )
    near = range(math.ceil(asked * (1 - BATCH_SLACK)), math.floor(asked * (1 + BATCH_SLACK)) + 1)
    return max(near or [int(asked)], key=lambda batch: (batch & -batch, -abs(batch - asked)))


def _device(device: DeviceFacts | str | None, cluster: Cluster) -> DeviceFacts:
    if isinstance(device, DeviceFacts):
        return device
    if device is not None:
        from tightwire.profile.devices import device as known

        return known(device)
    inside = cluster.levels[0].bandwidth_bytes_per_s if cluster.levels else 0.0
    # Data sheets: NVLink carries 300 GB/s each way between A100s, 450 GB/s between H100s.
    usual = DEVICES["h100" if inside >= 400e9 else "a100"]
    alike = [one for one in DEVICES.values() if one.memory_bytes == cluster.device_memory_bytes]
    return usual if usual in alike or not alike else alike[0]


@dataclass(frozen=True, kw_only=True)
class LayoutSearch:
    """One search, through all layouts or of one only.

    Attributes:
        model: that is cut.
        cluster: its workers are the devices.
        training: the batch, and what kernels do.
        memory_bytes: of each device.
        devices: as constants.
        only: the layout to look at; None: all.
        taken_for: the name of the device, where nobody told it.
    """

    model: Transformer
    cluster: Cluster
    training: TrainingCost
    memory_bytes: float
    devices: Accelerators
    only: Layout | None = None
    taken_for: str = ""
    _known: dict[tuple[int, int, int, Recompute], float] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def network(self) -> Network:
        """What prices groups of ranks."""
        return network_of(self.cluster)

    def run(self, top: int, allow: Allowance) -> Layouts:
        """Goes through all layouts."""
        considered, fitting = 0, 0
        smallest: tuple[float, Layout, Memory] | None = None
        best: list[Entry] = []
        keep = max(top, 1) * 4
        for how, micro_batches in self.layouts:
            considered += 1
            memory = memory_of(self.model, how, micro_batches, fused=self.training.fused)
            if smallest is None or memory.total < smallest[0]:
                smallest = memory.total, how, memory
            if memory.total > self.memory_bytes:
                continue
            fitting += 1
            if len(best) == keep and self._bound_s(how, micro_batches) > -best[0][0]:
                continue
            iteration = LayerCut(self.model, how, self.training, self.devices, self.network).iteration(
                micro_batches
            )
            # A plan that departs from exact steps may spare what replicas wait for: those are judged below.
            spared_s = iteration.data_s if allow != "lossless" and replicas_of(how) > 1 else 0.0
            entry = (spared_s - iteration.seconds, -considered, how, memory, iteration)
            if len(best) < keep:
                heapq.heappush(best, entry)
            else:
                heapq.heappushpop(best, entry)
        if smallest is None:
            raise PlanError(self._no_layout())
        if not best:
            raise PlanError(self._too_large(*smallest[1:]))
        candidates = [
            self._candidate(entry, allow) for entry in _unlike(sorted(best, reverse=True))[: 2 * top]
        ]
        found = sorted(candidates, key=lambda candidate: candidate.step_s)[:top]
        why = tuple(self._why(found, considered, fitting))
        return Layouts(
            model=self.model,
            cluster=self.cluster,
            training=self.training,
            devices=self.devices,
            network=self.network,
            ranking=tuple(found),
            considered=considered,
            fitting=fitting,
            why=why,
        )

    @property
    def layouts(self) -> Iterable[tuple[Layout, int]]:
        """All that are to be looked at, with their numbers of micro-batches."""
        if self.only is not None:
            return [(self.only, self.training.batch // (self.only.data * self.only.micro_batch))]
        return self._space(self.cluster)

    def _space(self, cluster: Cluster) -> LayoutSpace:
        return LayoutSpace(
            model=self.model, cluster=cluster, batch=self.training.batch, fused=self.training.fused
        )

    def _candidate(self, entry: Entry, allow: Allowance) -> Candidate:
        _, _, how, memory, iteration = entry
        cut = LayerCut(self.model, how, self.training, self.devices, self.network)
        leg = plan_leg(cut, iteration, self.cluster, allow)
        step_s = iteration.seconds - iteration.data_s + leg.exposed_s
        flops = self.model_flops / self.cluster.workers / self.devices.peak_flops_per_s
        return Candidate(how=how, memory=memory, iteration=iteration, utilisation=flops / step_s, leg=leg)

    def _bound_s(self, how: Layout, micro_batches: int) -> float:
        """Returns what an iteration takes at least: its compute alone."""
        return (
            micro_batches
            * layers_of_stage(self.model, how)
            * self._layer_s(how.tensor, how.context, how.micro_batch, how.recompute)
        )

    def _layer_s(self, tensor: int, context: int, micro_batch: int, recompute: Recompute) -> float:
        key = (tensor, context, micro_batch, recompute)
        if key not in self._known:
            how = Layout(tensor=tensor, context=context, micro_batch=micro_batch, recompute=recompute)
            self._known[key] = LayerCut(self.model, how, self.training, self.devices, self.network).layer_s
        return self._known[key]

    @property
    def model_flops(self) -> float:
        """What one step needs, nothing done twice."""
        return self.model.model_flops() * self.training.batch

    def _no_layout(self) -> str:
        workers, batch = self.cluster.workers, self.training.batch
        return (
            f"no layout of {workers} workers is legal: their degrees must divide {self.model.heads} heads (tensor), "
            f"{self.model.layers} layers (pipeline: {', '.join(map(str, legal_stages(self.model)))}) and a batch of "
            f"{batch} sequences (data). Take a number of workers that is a product of such degrees, or another batch."
        )

    def _too_large(self, how: Layout, memory: Memory) -> str:
        parts = ", ".join(f"{name} {print_gb(size)}" for name, size in memory.parts.items())
        more = self._devices_needed()
        return (
            f"no layout on {self.cluster.workers} devices of {print_gb(self.memory_bytes)} fits: the smallest, {how}, "
            f"needs {print_gb(memory.total)} on each ({parts}). Devices of {print_gb(memory.total)} would do"
            + (f", or about {more} of these." if more else ".")
        )

    def _devices_needed(self) -> int | None:
        """Returns how many devices of this memory would hold the model's state and one layer's work, doubling."""
        workers = self.cluster.workers
        for _ in range(12):
            workers *= 2
            try:
                for how, micro_batches in self._space(_plain(self.cluster, workers)):
                    memory = memory_of(self.model, how, micro_batches, fused=self.training.fused)
                    if memory.total <= self.memory_bytes:
                        return workers
            except PlanError:
                continue
        return None

    def _why(self, found: Sequence[Candidate], considered: int, fitting: int) -> Iterator[str]:
        best = found[0]
        yield (
            f"A batch of {self.training.batch} sequences of {self.model.seq_len} tokens: {considered} layouts are "
            f"legal, {fitting} of them fit {print_gb(self.memory_bytes)}; the fastest is "
            f"{best.how}: {best.step_s:.3g} s, {best.utilisation:.0%} of the peak."
        )
        if self.taken_for:
            yield (
                f"Nobody named the devices: each is taken for {self.taken_for}, as far as the cluster file tells, and "
                "the peak is that of one; --device names another."
            )
        parts = sorted(best.parts_s.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in parts if seconds > 0)
        yield f"Its time: {told}."
        memory = ", ".join(f"{name} {print_gb(size)}" for name, size in best.memory.parts.items() if size)
        yield f"Its memory: {print_gb(best.memory.total)} of {print_gb(self.memory_bytes)}: {memory}."
        yield best.leg.why


def _unlike(entries: Sequence[Entry]) -> list[Entry]:
    """Drops layouts that differ in nothing but which dimension is outermost, and take as long."""
    seen = set()
    kept = []
    for entry in entries:
        key = (entry[0], tuple((k, v) for k, v in entry[2].layout.items() if k != "outermost"))
        if key not in seen:
            seen.add(key)
            kept.append(entry)
    return kept


def _plain(cluster: Cluster, workers: int) -> Cluster:
    return Cluster.uniform(workers, min(200e9, cluster.bandwidth_bytes_per_s), cluster.latency_s)


def check(
    model: Transformer, how: Layout, cluster: Cluster, training: TrainingCost, memory_bytes: float
) -> Memory:
    """Checks one layout: legal on this cluster, and within memory.

    Raises:
        PlanError: another number of devices, a degree that leaves a rest, or too much memory, with what would do.
    """
    micro_batches = require_legal(model, how, training.batch)
    if how.workers != cluster.workers:
        raise PlanError(
            f"{how} takes {how.workers} workers, and the cluster has {cluster.workers}; make them equal."
        )
    memory = memory_of(model, how, micro_batches, fused=training.fused)
    if memory.total > memory_bytes:
        raise PlanError(
            f"{how} needs {print_gb(memory.total)} on each device, and there are {print_gb(memory_bytes)}: mostly "
            f"{memory.largest}. {_ADVICE[memory.largest]}"
        )
    return memory


_ADVICE = {
    "weights": "Take more tensor shards or pipeline stages, or shard=zero3.",
    "gradients": "Take more tensor shards or pipeline stages, or shard=zero2 or zero3.",
    "optimizer": "Take shard=zero1, which spreads the optimizer's state over the data dimension.",
    "activations": "Take recompute=full, a smaller micro-batch, sequence parallelism, or more tensor shards.",
    "buffers": "Take a smaller micro-batch, or more tensor shards.",
}
