"""Lazily aggregated gradients: workers skip gradients that have hardly changed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.round import Round
from tightwire.buckets import Bucket
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine
from tightwire.runtime.engines.memory import have_finite_gradients
from tightwire.runtime.membership import Called
from tightwire.sync.lag import LOOKS_BACK, Lag
from tightwire.transport import Transport
from tightwire.transport.base import tree_edges


class SenderTree:
    """Adds up the tensors of some ranks on all: along a binomial tree to one of them, and from there to everybody.

    Contract: every rank, with the same senders; blocks. `bytes_sent` is exact.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def close(self) -> None:
        """Gives the connections back."""
        self._transport.close()

    def bytes_sent(self, senders: Sequence[int], num_bytes: int) -> int:
        """Returns what this rank sends of a buffer."""
        rank, size = self._transport.rank, self._transport.size
        up = rank in senders and rank != senders[0]
        down, _ = tree_edges(rank, size, senders[0])
        return num_bytes * (up + len(down))

    def sum(self, flat: Tensor, senders: Sequence[int]) -> None:
        """Replaces `flat` on every rank by the sum of the senders'; the same bits everywhere."""
        transport = self._transport
        if transport.rank in senders:
            place = senders.index(transport.rank)
            children, parent = tree_edges(place, len(senders), 0)
            for child in reversed(children):
                arrived = torch.empty_like(flat)
                transport.irecv(arrived, senders[child], 0).wait()
                flat.add_(arrived)
            if parent is not None:
                transport.isend(flat, senders[parent], 0).wait()
        transport.broadcast(flat, senders[0])


class LazyEngine(BaseEngine):
    """Before each step, workers agree on who sends, and step with the mean of what each sent last (lag).

    A worker whose data is over takes back what it sent, so that the mean is that of the others.
    """

    keeps_replicas_equal = True

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._context, self._parameters = context, parameters
        assert isinstance(plan.sync, Lag), plan.sync
        self._threshold = plan.sync.threshold
        self._exchange = context.exactly().exchange(parameters, plan)
        self._tree = SenderTree(context.transport.channel())
        self._rank, self._size = context.transport.rank, context.transport.size
        # Of a step: a flag per sender, and how many have a NaN or Inf.
        self._roll = context.roll(self._size + 1)
        layouts = [bucket.layout for bucket in self._exchange.buckets]
        self._sent = [Bucket(layout) for layout in layouts]
        self._means = [Bucket(layout) for layout in layouts]
        self._own = [Bucket(layout) for layout in layouts]
        self._squares: deque[float] = deque(maxlen=LOOKS_BACK)
        self._number = self._steps = 0

    @torch.no_grad()
    def before_step(self) -> None:  # noqa: D102
        start_s = time.perf_counter()
        self._steps += 1
        finite = have_finite_gradients(self._parameters.values())
        for bucket in self._own:
            for name, view in bucket.views.items():
                gradient = self._parameters[name].grad
                view.zero_() if gradient is None else view.copy_(gradient)
        called = self._roll.call(
            self._own_numbers(sends=finite and self._has_news(), finite=finite), present=True
        )
        self.planned_bytes += self._roll.bytes_sent
        spoiled = self._take_part(called)
        self.skipped += spoiled
        self._deliver(called.present, spoiled=spoiled)
        self.exposed_s = time.perf_counter() - start_s

    @torch.no_grad()
    def flush(self) -> None:
        """Takes back what this worker sent, in the first round that others make."""
        for own in self._own:
            own.flat.zero_()
        has_sent = any(bool(sent.flat.any()) for sent in self._sent)
        mine = self._own_numbers(sends=has_sent, finite=True)

        def take_part(called: Called) -> None:
            if not self._take_part(called):
                mine.zero_()

        called_bytes = self._roll.until_all_are_finished(take_part, mine)
        self.planned_bytes += called_bytes
        self.planned_bytes += self._context.membership.even_out(
            self._context.transport, self._parameters.values(), self._steps
        )

    def consensus(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {
            "rounds": self._number,
            "steps": self._steps,
            "squares": list(self._squares),
            "memory": {
                name: {"sent": sent.clone(), "mean": mean.views[name].clone()}
                for bucket, mean in zip(self._sent, self._means, strict=True)
                for name, sent in bucket.views.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._number, self._steps = state["rounds"], state["steps"]
        self._squares = deque(state["squares"], maxlen=LOOKS_BACK)
        for kind, buckets in (("sent", self._sent), ("mean", self._means)):
            for bucket in buckets:
                bucket.pack({name: state["memory"][name][kind] for name in bucket.views})

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._number = rounds
        self._squares.clear()
        for bucket in (*self._sent, *self._means):
            bucket.flat.zero_()

    def close(self) -> None:  # noqa: D102
        self._exchange.close()
        self._roll.close()
        self._tree.close()

    def _has_news(self) -> bool:
        """Whether this worker's gradient is far from the one that the others have of it (15a)."""
        pairs = zip(self._own, self._sent, strict=True)
        change = sum(float((own.flat - sent.flat).square().sum()) for own, sent in pairs)
        return change > self._threshold * sum(self._squares)

    def _own_numbers(self, *, sends: bool, finite: bool) -> Tensor:
        """Returns what this rank brings to the roll of a step."""
        numbers = torch.zeros(self._size + 1)
        numbers[self._rank], numbers[-1] = float(sends), float(not finite)
        return numbers

    def _take_part(self, called: Called) -> bool:
        """Makes the step's exchange; returns whether a NaN or Inf on any rank spoiled it."""
        *flags, spoilers = called.own.tolist()
        if spoilers > 0.5:
            return True
        self._send([rank for rank, flag in enumerate(flags) if flag > 0.5])
        return False

    def _send(self, senders: Sequence[int]) -> None:
        """Brings the senders' changes into the mean of what each sent last."""
        if not senders:
            return
        self.rounds += 1
        self._number += 1
        buckets = self._exchange.buckets
        mine = self._rank in senders
        for bucket, own, sent in zip(buckets, self._own, self._sent, strict=True):
            if mine:
                torch.sub(own.flat, sent.flat, out=bucket.flat)
                sent.flat.copy_(own.flat)
            else:
                bucket.flat.zero_()
        if len(senders) == self._size:
            self.planned_bytes += self._exchange.bytes_in(self._number)
            self._exchange.begin(Round(number=self._number))
            self._exchange.end()
            self._exchange.wait()
        else:
            for bucket in buckets:
                self.planned_bytes += self._tree.bytes_sent(senders, bucket.flat.nbytes)
                self._tree.sum(bucket.flat, senders)
                bucket.flat.div_(self._size)
        for mean, bucket in zip(self._means, buckets, strict=True):
            mean.flat.add_(bucket.flat)

    def _deliver(self, present: int, *, spoiled: bool) -> None:
        """Makes the mean of those present the gradient; a step that anybody's NaN spoiled has none."""
        share = self._size / max(present, 1)
        for mean, bucket in zip(self._means, self._exchange.buckets, strict=True):
            torch.mul(mean.flat, share, out=bucket.flat)
            for name, view in bucket.views.items():
                parameter = self._parameters[name]
                if spoiled:
                    parameter.grad = None
                elif parameter.grad is not None or bool(view.any()):
                    parameter.grad = view.clone()
        if not spoiled:
            self._squares.append(sum(float(b.flat.square().sum()) for b in self._exchange.buckets))
