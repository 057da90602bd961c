"""What every engine is made from: the transport, the routes of parameters, the tracer, the seed."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tightwire.buckets import Bucket, BucketLayout, plan_layout
from tightwire.collectives import AllReduce, Architecture
from tightwire.compression import Codec, Identity, warm_up
from tightwire.compression.routing import compression_for
from tightwire.errors import AttachError
from tightwire.plan import Member, Plan, Route, parse_compression
from tightwire.reducers import Averager, Reducer, Reduction, all_reducer, build_reducer
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.trace import Tracer, traced
from tightwire.schedule import Schedule, TensorFacts
from tightwire.transport import Counting, Transport


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """Builds exchanges over one transport.

    Attributes:
        transport: over all workers; counts what engines send.
        routing: which parameters are compressed otherwise than the plan says.
        tracer: where spans go.
        seed: of stochastic codecs, equal on all ranks.
        gradient_scale: by how much gradients are scaled at present (AMP).
    """

    transport: Counting
    routing: Sequence[Route]
    tracer: Tracer
    seed: int
    gradient_scale: Callable[[], float]

    def compression_of(self, name: str, tensor: Tensor, plan: Plan) -> tuple[Member, ...]:
        """Returns how a parameter travels: as its first matching route says, or the plan, if it is worth it."""
        routes = (r.compression for r in self.routing if fnmatch.fnmatchcase(name, r.match))
        compression = parse_compression(next(routes, plan.compression_text))
        return compression_for(compression, tensor.numel() * tensor.itemsize, tensor.dim())

    def exchange(self, tensors: Mapping[str, Tensor], plan: Plan) -> Exchange:
        """Builds buckets for tensors, and what averages them under `plan`. Every rank, in the same order.

        Args:
            tensors: by name, in the order in which a model registers them: gradients arrive in the reverse order.
        """
        require_cpu(tensors)
        schedule, architecture = cast(Schedule, plan.schedule), cast(Architecture, plan.architecture)
        backward = dict(reversed(list(tensors.items())))
        routes = {name: self.compression_of(name, tensor, plan) for name, tensor in backward.items()}
        facts = [
            TensorFacts(
                num_bytes=t.numel() * t.itemsize, kind=(str(t.dtype), str(t.device), *map(str, routes[name]))
            )
            for name, t in backward.items()
        ]
        channel = self.transport.channel()
        averagers = []
        for number, layout in enumerate(plan_layout(backward, schedule.partition(facts))):
            build = functools.partial(self._build, architecture, channel, layout, number)
            compression = routes[layout.slots[0].name]
            averagers.append(Averager(Bucket(layout), compression, build, workers=channel.size))
        return Exchange(averagers, schedule.scheduler(len(averagers)), self.tracer)

    def _build(
        self,
        architecture: Architecture,
        channel: Transport,
        layout: BucketLayout,
        number: int,
        sender: Member,
    ) -> Reducer:
        if not isinstance(sender, Codec):
            return build_reducer(architecture, cast(Reduction, sender), channel, bucket=layout, number=number)
        warm_up(sender, layout.dtype)  # kernels are compiled now, not within the first step
        return build_reducer(architecture, traced(sender, self.tracer), channel, bucket=layout, number=number)

    def control(self, numel: int) -> Reducer:
        """Builds the reducer of the small exact messages that engines agree by, on a channel of its own."""
        layout = plan_layout({"control": torch.zeros(numel)}, [[0]])[0]
        return all_reducer(
            AllReduce("recursive-doubling"), Identity(), self.transport.channel(), bucket=layout, tag=0
        )


def require_cpu(tensors: Mapping[str, Tensor]) -> None:
    """Makes sure that tensors are where they can be averaged.

    Raises:
        AttachError: names one that is not in host memory.
    """
    if elsewhere := {name: tensor.device for name, tensor in tensors.items() if tensor.device.type != "cpu"}:
        name, device = next(iter(elsewhere.items()))
        raise AttachError(
            f"{len(elsewhere)} parameters, {name} among them, are on {device}; this release averages tensors in host "
            "memory only. Train on CPU, or stay with DistributedDataParallel for now."
        )
