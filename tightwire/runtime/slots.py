"""A gossiping worker's buckets: where it was, where its optimizer led, and what mixes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.answers import CompressionAnswer
from tightwire.architecture.gossip.mixers import SGP, Mixer, build_mixer
from tightwire.architecture.gossip.neighbours import Neighbours
from tightwire.buckets import Bucket, BucketLayout, on_host, plan_layout
from tightwire.compression import Codec, compile_kernels
from tightwire.compression.checks import is_finite
from tightwire.compression.stage import sender_of
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.schedule import TensorFacts


class GossipBucket:
    """One bucket of parameters.

    Attributes:
        anchor: the parameters as the last round left them, x.
        half: those after the optimizer's step, x½, which the mixer turns into the next x.
        mixer: does that.
    """

    def __init__(self, layout: BucketLayout, parameters: Mapping[str, Parameter]) -> None:
        self.anchor, self.half = Bucket(layout), Bucket(layout)
        self._parameters = {name: parameters[name] for name in self.anchor.views}
        self.mixer: Mixer
        with torch.no_grad():
            self.anchor.pack(self._parameters)

    @torch.no_grad()
    def fill(self) -> bool:
        """Takes the present parameters as x½; returns whether they are finite."""
        self.half.pack(self._parameters)
        return is_finite(self.half.flat)

    def stay(self) -> None:
        """Takes back the step: x½ is x."""
        self.half.flat.copy_(self.anchor.flat)

    @torch.no_grad()
    def deliver(self) -> None:
        """Makes x½, as the mixer left it, the parameters, and where the next round begins."""
        self.half.unpack(self._parameters)
        self.anchor.flat.copy_(self.half.flat)

    def memory(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yields (tensor name, what it is called, view) of all that the mixer remembers; shares memory."""
        for kind, flat in self.mixer.kept().items():
            for name, view in Bucket(self.anchor.layout, flat).views.items():
                yield name, kind, view

    @property
    def push_weight(self) -> float:
        """The push-sum weight; 1 where nothing is pushed."""
        return self.mixer.weight if isinstance(self.mixer, SGP) else 1.0

    @push_weight.setter
    def push_weight(self, weight: float) -> None:
        if isinstance(self.mixer, SGP):
            self.mixer.weight = weight


def build_slots(
    parameters: Mapping[str, Parameter],
    plan: Plan,
    context: RunContext,
    neighbours: Callable[[int], Neighbours],
) -> list[GossipBucket]:
    """Builds the buckets that the plan's schedule makes of parameters, each with the mixer of its compression.

    Args:
        parameters: by name.
        plan: of gossip.
        context: over all workers.
        neighbours: makes those of a bucket from its number.
    """
    slots = []
    for number, (layout, compression) in enumerate(cut(parameters, plan, context)):
        compile_kernels(cast(Codec, compression[0]), layout.dtype)  # compiled now, not within the first step
        slot = GossipBucket(layout, parameters)
        slot.mixer = build_mixer(plan, compression, neighbours(number), slot.anchor.flat)
        slots.append(slot)
    return slots


def cut(
    parameters: Mapping[str, Tensor], plan: Plan, context: RunContext
) -> list[tuple[BucketLayout, Sequence[CompressionAnswer]]]:
    """Returns the buckets, each with how it travels."""
    routes = {name: context.compression_of(name, p, plan) for name, p in parameters.items()}
    facts = [
        TensorFacts(
            num_bytes=p.numel() * p.itemsize,
            kind=(str(p.dtype), *map(str, routes[name])),
            is_exact=sender_of(routes[name]).lossless,
        )
        for name, p in parameters.items()
    ]
    # Neighbours' values are mixed on the host, wherever the parameters are.
    layouts = on_host(plan_layout(parameters, plan.schedule.partition(facts)))
    return [(layout, routes[layout.slots[0].name]) for layout in layouts]
