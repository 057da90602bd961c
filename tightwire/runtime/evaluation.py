"""Lending a model the parameters that it is to be evaluated with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from tightwire.architecture.round import Round
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.exchange import Exchange

EXACT = "bsp/allreduce/none/sequential"


class Evaluation:
    """Puts agreed parameters in the place of a worker's own for a while.

    Attributes:
        planned_bytes: what this rank sent for means so far, by formula.
    """

    def __init__(self, model: nn.Module, context: RunContext) -> None:
        self.planned_bytes = 0
        self._model, self._context = model, context
        self._exchange: Exchange | None = None
        self._rounds = 0
        self._lent = False

    @contextlib.contextmanager
    def of(self, agreed: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Inside, parameters are `agreed`, by name, or their mean over ranks if that is None.

        Contract: every rank, with the same kind of argument; blocks for a mean.
        """
        parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        lent = self._mean(parameters) if agreed is None else agreed
        own = {name: parameters[name].detach().clone() for name in lent}
        _copy(lent, parameters)
        self._lent = True
        try:
            yield
        finally:
            self._lent = False
            _copy(own, parameters)

    def require_over(self) -> None:
        """Makes sure that the worker has its own parameters.

        Raises:
            AttachError: they are lent.
        """
        if self._lent:
            raise AttachError(
                "optimizer.step() inside run.evaluating() would be undone when it ends; leave the block first."
            )

    def move(self, context: RunContext) -> None:
        """Goes on among other ranks. Local."""
        self.close()
        self._context, self._exchange = context, None

    def close(self) -> None:
        """Ends the exchange's thread. Local."""
        if self._exchange is not None:
            self._exchange.close()

    def _mean(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._exchange is None:
            self._exchange = self._context.exactly().exchange(parameters, Plan.parse(EXACT))
        exchange = self._exchange
        self._rounds += 1
        self.planned_bytes += exchange.bytes_in(self._rounds)
        exchange.begin(Round(number=self._rounds))
        for bucket in exchange.buckets:
            bucket.pack({name: parameters[name].detach() for name in bucket.views})
        exchange.end()
        exchange.wait()
        return {name: view for bucket in exchange.buckets for name, view in bucket.views.items()}


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
