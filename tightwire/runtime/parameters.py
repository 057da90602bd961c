"""Parameters on their way: rounds of local methods, in which workers agree on the mean of their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn import Parameter

from tightwire.buckets import Bucket
from tightwire.reducers.averager import Round
from tightwire.runtime.exchange import Exchange


class Parameters:
    """Averages parameters by their difference to the last agreed ones, so that any codec serves.

    Attributes:
        anchors: the parameters that all workers agreed on last, one bucket of them per bucket of the exchange.
    """

    def __init__(self, parameters: Mapping[str, Parameter], exchange: Exchange) -> None:
        self._parameters = parameters
        self._exchange = exchange
        self.anchors = tuple(Bucket(averager.bucket.layout) for averager in exchange.averagers)
        self.anchor_here()

    @torch.no_grad()
    def anchor_here(self) -> None:
        """Takes the present parameters, equal on all ranks, as the agreed ones."""
        for anchor in self.anchors:
            anchor.pack({name: self._parameters[name].detach() for name in anchor.views})

    @torch.no_grad()
    def average(self, now: Round, *, spoiled: bool = False) -> bool:
        """Replaces every parameter by its mean over all ranks: x ← x_start − mean(x_start − x_end).

        Args:
            now: the round, the same on every rank.
            spoiled: this rank's parameters are not to be had; the mean will not be finite.

        Contract: every rank; blocks; sends `exchange.bytes_in` the round.

        Returns:
            Whether the mean was finite; if not, all ranks alike went back to the parameters agreed on before.
        """
        self._exchange.begin(now)
        for number, (anchor, averager) in enumerate(zip(self.anchors, self._exchange.averagers, strict=True)):
            for name, difference in averager.bucket.views.items():
                torch.sub(anchor.views[name], self._parameters[name], out=difference)
            if spoiled:
                averager.bucket.flat.fill_(math.nan)
            self._exchange.ready(number)
        self._exchange.end()
        finite = self._exchange.wait()
        for anchor, averager in zip(self.anchors, self._exchange.averagers, strict=True):
            if finite:
                anchor.flat.sub_(averager.bucket.flat)
            anchor.unpack({name: self._parameters[name] for name in anchor.views})
        return finite
