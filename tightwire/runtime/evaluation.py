"""Lending a model the parameters that it is to be evaluated with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tightwire.architecture.round import Round
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.agreement import assign, copy_from_first
from tightwire.runtime.context import RunContext
from tightwire.runtime.exchange import Exchange

EXACT = "bsp/allreduce/none/sequential"


class Evaluation:
    """Puts agreed parameters in the place of a worker's own for a while.

    Attributes:
        planned_bytes: what this rank sent for means so far, by formula.
        is_lent: whether the model holds agreed parameters now.
    """

    def __init__(self, model: nn.Module, context: RunContext) -> None:
        self.planned_bytes = 0
        self._model, self._context = model, context
        self._exchanges: dict[str, Exchange] = {}
        self._rounds = 0
        self.is_lent = False
        self._lent: Mapping[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}  # what the worker had where it is lent others

    def agree(self, agreed: Mapping[str, Tensor] | None, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns what is evaluated, by name.

        Args:
            agreed: parameters by name; empty: as they are; None: their mean over ranks.
            buffers: by name; their mean is evaluated too, of whole numbers rank 0's.

        Contract: every rank, with the same kind of argument; blocks for a mean.
        """
        found = dict(self._mean("parameters", self._parameters()) if agreed is None else agreed)
        return found | self._mean_of_buffers(buffers)

    @contextlib.contextmanager
    def lending(self, lent: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, parameters and buffers are those that are lent, by name. Local."""
        before = self._lent, self._own, self.is_lent
        self._lent, self._own, self.is_lent = lent, self._held(lent), True
        self._put(lent)
        try:
            yield
        finally:
            self._put(self._own)
            self._lent, self._own, self.is_lent = before

    @contextlib.contextmanager
    def given_back(self) -> Iterator[bool]:
        """Inside, the worker has its own parameters and buffers; yields whether it was lent others. Local."""
        if not self.is_lent:
            yield False
            return
        self.is_lent = False
        self._put(self._own)
        try:
            yield True
        finally:
            self._own = self._held(self._lent)
            self._put(self._lent)
            self.is_lent = True

    def require_over(self) -> None:
        """Makes sure that the worker has its own parameters.

        Raises:
            AttachError: they are lent.
        """
        if self.is_lent:
            raise AttachError(
                "optimizer.step() inside run.evaluating() would be undone when it ends; leave the block first."
            )

    def move(self, context: RunContext) -> None:
        """Goes on among other ranks. Local."""
        self.close()
        self._context = context

    def close(self) -> None:
        """Ends the exchanges' threads. Local."""
        for exchange in self._exchanges.values():
            exchange.close()
        self._exchanges.clear()

    def _places(self) -> dict[str, Tensor]:
        return {**self._parameters(), **dict(self._model.named_buffers())}

    def _held(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Returns copies of what the model holds, by name."""
        places = self._places()
        return {name: places[name].detach().clone() for name in names}

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        """Writes to the model, by name."""
        places = self._places()
        for name, tensor in tensors.items():
            assign(places[name], tensor)

    def _parameters(self) -> dict[str, nn.Parameter]:
        left = self._context.left
        return {n: p for n, p in self._model.named_parameters() if p.requires_grad and n not in left}

    def _mean_of_buffers(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._context.transport.size == 1:
            return {}
        floats = {n: b.contiguous() for n, b in buffers.items() if b.is_floating_point() and b.numel()}
        means = self._mean("buffers", floats) if floats else {}
        others = {n: b.clone() for n, b in buffers.items() if n not in floats}
        copy_from_first(self._context.transport.inner, others.values())
        return means | others

    def _mean(self, what: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if what not in self._exchanges:
            self._exchanges[what] = self._context.exactly().exchange(parameters, Plan.parse(EXACT))
        exchange = self._exchanges[what]
        self._rounds += 1
        self.planned_bytes += exchange.bytes_in(self._rounds)
        exchange.begin(Round(number=self._rounds))
        for bucket in exchange.buckets:
            bucket.pack({name: parameters[name].detach() for name in bucket.views})
        exchange.end()
        exchange.wait()
        return {name: view for bucket in exchange.buckets for name, view in bucket.views.items()}
