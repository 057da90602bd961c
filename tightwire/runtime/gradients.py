"""Gradients on their way: from autograd into buckets, and back as means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from tightwire.architecture.round import Round
from tightwire.errors import AttachError
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.trace import Tracer


class Gradients:
    """Averages gradients in every backward pass; after `backward()` returns, `p.grad` is the mean.

    Each pass averages what that pass (and any `accumulate` passes before it) added: a gradient that was averaged
    before is set aside and added back, so several passes per step sum up, whatever the codec.

    A parameter that took part on some ranks counts as zero on the others; one that took part on no rank keeps
    the gradient it had, None included, as in plain PyTorch.

    Contract: every rank runs backward passes in the same order. Blocks at the end of `backward()`.

    Attributes:
        enabled: False while gradients accumulate locally.
        finite: False since a mean was not finite; whoever acts on it sets it back.
        nonfinite_rounds: how many passes ended so.
        share: all ranks over those whose training goes on, by which means are multiplied: the others sent zeros.
        ready_s: when each gradient was there in the last pass that was averaged, from its first one.
        before_round: makes the round that a pass is.
        before_pass: called before autograd adds to any gradient.
        before_ready: called with the number of each bucket that is about to move.
        at_end: ends a pass, told which parameters took part (0 or 1 each): by default waits for the means.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        exchange: Exchange,
        count_users: Callable[[Tensor], Tensor],
        tracer: Tracer,
    ) -> None:
        self.enabled = True
        self.finite = True
        self.nonfinite_rounds = 0
        self.share = 1.0
        self.ready_s: dict[str, float] = {}
        self.before_round: Callable[[], Round] = Round
        self.before_pass: Callable[[], None] = _nothing
        self.before_ready: Callable[[int], None] = _nothing
        self.at_end: Callable[[Tensor], None] = self.collect
        self._parameters = parameters
        self._exchange = exchange
        self._count_users = count_users
        self._tracer = tracer
        self._views: dict[str, Tensor] = {}
        self._bucket_of: dict[str, int] = {}
        for number, bucket in enumerate(exchange.buckets):
            self._views |= bucket.views
            self._bucket_of |= dict.fromkeys(bucket.views, number)
        self._averaged: set[str] = set()
        self._aside: dict[str, Tensor] = {}
        self._arrived: set[str] = set()
        self._missing: list[int] = []
        self._running = False
        self._begun_s = 0.0
        self._exposed_s = 0.0
        # Autograd keeps a parameter's accumulator, and so its hook, only while someone else does.
        self._accumulators = {name: _accumulator(parameter) for name, parameter in parameters.items()}
        self._handles: list[RemovableHandle] = []
        for name, parameter in parameters.items():
            self._handles.append(
                self._accumulators[name].register_prehook(lambda _, name=name: self._before_gradient(name))
            )
            self._handles.append(
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._on_gradient(name))
            )

    def remove(self) -> None:
        """Takes the hooks out; gradients stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._accumulators.clear()

    def take_exposed_s(self) -> float:
        """Returns how long passes waited after their own work was done, since this was last asked."""
        exposed_s, self._exposed_s = self._exposed_s, 0.0
        return exposed_s

    def settle(self) -> None:
        """Adds back what `accumulate` passes set aside, where no averaging pass followed them.

        Raises:
            AttachError: a backward pass failed midway, so that ranks are not in step any more.
        """
        if self._running:
            raise AttachError(
                "the last backward pass did not end: it raised, and its gradients were not averaged. Close the run, "
                "load a checkpoint and attach again."
            )
        for name, aside in self._aside.items():
            if (gradient := self._parameters[name].grad) is not None:
                gradient.add_(aside)
        self._aside.clear()

    def forget(self) -> None:
        """Drops all gradients, so that the optimizer's step changes nothing."""
        self._aside.clear()
        self._averaged.clear()
        for parameter in self._parameters.values():
            parameter.grad = None

    def forget_some(self, names: Iterable[str]) -> None:
        """Drops what is known of some gradients, whose means are not to be stepped with."""
        for name in names:
            self._aside.pop(name, None)
            self._averaged.discard(name)

    def collect(self, used: Tensor) -> None:
        """Waits for all means and makes them the gradients."""
        self._exchange.end()
        users = self._count_users(used)
        self.deliver(users.tolist(), finite=self._exchange.wait())

    def deliver(self, users: Sequence[float], *, finite: bool) -> None:
        """Makes all means the gradients.

        Args:
            users: on how many ranks each parameter took part.
            finite: whether all means are.
        """
        if not finite:
            self.finite = False
            self.nonfinite_rounds += 1
        for name, count in zip(self._parameters, users, strict=True):
            self.deliver_one(name, count)

    def deliver_one(self, name: str, num_users: float) -> None:
        """Makes a mean the parameter's gradient, unless no rank used it and no leftover arrived for it."""
        parameter, view, aside = self._parameters[name], self._views[name], self._aside.pop(name, None)
        if self.share != 1.0:
            view.mul_(self.share)
        if aside is not None:
            view.add_(aside)
        if num_users > 0 or aside is not None or view.any():
            parameter.grad = view
            self._averaged.add(name)
        else:
            parameter.grad = None

    def _before_gradient(self, name: str) -> None:
        """Sets an averaged gradient aside before autograd adds to it."""
        self.before_pass()
        parameter = self._parameters[name]
        if parameter.grad is None:  # the user dropped it, and with it what was set aside of it
            self._aside.pop(name, None)
        elif name in self._averaged and parameter.grad is self._views[name]:
            self._aside[name] = parameter.grad.clone()
            parameter.grad = None
        self._averaged.discard(name)

    def _on_gradient(self, name: str) -> None:
        gradient = self._parameters[name].grad
        assert gradient is not None
        if gradient.layout != torch.strided:
            raise AttachError(
                f"parameter {name} has a sparse gradient ({gradient.layout}), which cannot be averaged in a bucket; "
                "build the layer with sparse=False."
            )
        if not self.enabled:
            return
        if not self._running:
            self._begin()
        if name in self._arrived:
            raise AttachError(
                f"parameter {name} got a gradient twice in one backward pass; use checkpoint(use_reentrant=False). If "
                "an earlier pass raised, close the run, load a checkpoint and attach again."
            )
        self._arrived.add(name)
        self._fill(name, gradient)
        self.ready_s[name] = time.perf_counter() - self._begun_s
        bucket = self._bucket_of[name]
        self._missing[bucket] -= 1
        if self._missing[bucket] == 0:
            self.before_ready(bucket)
            self._exchange.ready(bucket)

    def _begin(self) -> None:
        self._begun_s = time.perf_counter()
        self._running = True
        self._arrived = set()
        self._missing = [len(bucket.views) for bucket in self._exchange.buckets]
        self._exchange.begin(self.before_round())
        # The engine's own end-of-backward callback, which DDP and FSDP rely on as well.
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _fill(self, name: str, gradient: Tensor) -> None:
        view = self._views[name]
        if gradient is not view:
            view.copy_(gradient)
            self._parameters[name].grad = view

    def _end(self) -> None:
        self._running = False
        waiting_since_s = time.perf_counter()
        self._tracer.record("compute", "backward", self._begun_s, waiting_since_s)
        used = [self._complete(name, parameter) for name, parameter in self._parameters.items()]
        for bucket, missing in enumerate(self._missing):
            if missing:
                self.before_ready(bucket)
        self.at_end(torch.tensor(used, dtype=torch.float32))
        self._exposed_s += time.perf_counter() - waiting_since_s
        self._tracer.record("compute", "wait for means", waiting_since_s, time.perf_counter())

    def _complete(self, name: str, parameter: Parameter) -> bool:
        """Fills the slot of a parameter that this pass did not reach; returns whether it has anything to average."""
        if name in self._arrived:
            return True
        self._before_gradient(name)
        if parameter.grad is not None:  # left by an `accumulate` pass
            self._fill(name, parameter.grad)
            return True
        self._views[name].zero_()
        return False


def _nothing(*_: object) -> None:
    pass


@torch.enable_grad()
def _accumulator(parameter: Parameter) -> Node:
    """Returns the node that adds to a parameter's gradient; unlike the parameter, it is silent in `autograd.grad`."""
    alias = parameter.expand_as(parameter).grad_fn
    assert alias is not None
    node = alias.next_functions[0][0]
    assert node is not None
    return node
