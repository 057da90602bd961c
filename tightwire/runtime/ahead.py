"""Eager outer steps: a worker goes on with its own change before the mean of all is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.buckets import Bucket
from tightwire.runtime.outer import OuterStep

KINDS = ("start", "ahead", "last", "owed")
PREFIX = "eager "


@final
class Ahead:
    """Where a worker is while means travel: at the anchor, and ahead of it by the share that its own change will have.

    At the end of round t an eager worker steps with Δₜ/n of its own and the others' Δₜ₋₁/n, which is the mean of round
    t − 1 and (Δₜ − Δₜ₋₁)/n. An outer step is linear, so that the two may be taken apart: all workers step from their
    common anchor with the means, in the same bits, and each from zero with its differences; it goes on from the sum.
    Once no round is under way all are at the anchor.
    """

    def __init__(self, outer: OuterStep, workers: int) -> None:
        """Takes the worker's own outer step, like that of the anchor, and how many workers there are."""
        self._outer, self._workers = outer, workers

    def begin(self, anchors: Sequence[Bucket], parameters: Mapping[str, Parameter]) -> None:
        """Learns where the anchors are and what is trained. Local, once."""
        self._anchors, self._parameters = anchors, parameters
        layouts = [anchor.layout for anchor in anchors]
        self._kept = {kind: tuple(map(Bucket, layouts)) for kind in KINDS}
        self._steps = tuple(map(Bucket, layouts))
        self._outer.begin(self._kept["ahead"])
        self.forget()

    def forget(self) -> None:
        """Begins anew from the anchor, with nothing of this worker's own."""
        for kind in ("ahead", "last", "owed"):
            for bucket in self._kept[kind]:
                bucket.flat.zero_()
        self._outer.load_state_dict({})
        for start, anchor in zip(self._kept["start"], self._anchors, strict=True):
            start.flat.copy_(anchor.flat)

    def measure(self, number: int, out: Bucket) -> None:
        """Writes what this worker changed since the last round began, and what it owes, of one bucket."""
        start = self._kept["start"][number]
        for name, view in out.views.items():
            torch.sub(start.views[name], self._parameters[name].detach(), out=view)
        out.flat.add_(self._kept["owed"][number].flat)

    def send(self, number: int, sent: Tensor) -> None:
        """Learns what part of the sum is this worker's, before it travels."""
        step, last, owed = (
            self._steps[number].flat,
            self._kept["last"][number].flat,
            self._kept["owed"][number].flat,
        )
        torch.sub(sent, last, out=step).div_(self._workers)
        last.copy_(sent)
        owed.zero_()

    def go_on(self) -> None:
        """Goes to the anchor and ahead of it."""
        self._outer.step(self._steps, 1.0)
        for start, anchor, ahead in zip(self._kept["start"], self._anchors, self._kept["ahead"], strict=True):
            torch.add(anchor.flat, ahead.flat, out=start.flat)
            start.unpack({name: self._parameters[name] for name in start.views})

    def owe(self) -> None:
        """Learns that a round will never arrive: the next one sends its change again."""
        for owed, last in zip(self._kept["owed"], self._kept["last"], strict=True):
            owed.flat.copy_(last.flat)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Returns copies of all, by parameter name, then by what it is called."""
        named: dict[str, dict[str, Tensor]] = {}
        for kind, buckets in self._kept.items():
            for bucket in buckets:
                for name, view in bucket.views.items():
                    named.setdefault(name, {})[PREFIX + kind] = view.clone()
        for name, kept in self._outer.state_dict().items():
            named[name] |= {PREFIX + PREFIX + key: value for key, value in kept.items()}
        return named

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes up what `state_dict` returned, among what else there is of a parameter."""
        for kind, buckets in self._kept.items():
            for bucket in buckets:
                bucket.pack({name: state[name][PREFIX + kind] for name in bucket.views})
        deep = PREFIX + PREFIX
        own = {
            n: {k[len(deep) :]: v for k, v in kept.items() if k.startswith(deep)} for n, kept in state.items()
        }
        self._outer.load_state_dict({name: kept for name, kept in own.items() if kept})
