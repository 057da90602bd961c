"""Gradients on their way: from autograd into buckets, and back as means."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from tightwire.architecture.round import Round
from tightwire.errors import AttachError
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.trace import Tracer


class PassListener(Protocol):
    """What happens in a backward pass, told as it does."""

    def before_pass(self) -> None:
        """Called before autograd adds to any gradient."""

    def begin(self) -> Round:
        """Makes the round that the pass is."""

    def before_ready(self, bucket: int) -> None:
        """Called when a bucket is about to move."""

    def end(self, used: Tensor) -> None:
        """Ends the pass; told which parameters took part, 1 or 0 each."""


class Gradients:
    """Averages gradients in every backward pass; after `backward()` returns, `p.grad` is the mean.

    Each pass averages what that pass (and any `accumulate` passes before it) added: a gradient that was averaged
    before is set aside and added back, so several passes per step sum up, whatever the codec. A pass that is nested in
    another, as reentrant checkpointing makes them, is part of that one where the model's own outputs led to it.

    A parameter that took part on some ranks counts as zero on the others; one that took part on no rank keeps
    the gradient it had, None included, as in plain PyTorch.

    What a pass taught stages and averagers is kept once its means are stepped with or added to; of a pass whose means
    the user dropped (`zero_grad()`), nothing is.

    Other hooks on a parameter run before ours, whenever they were registered: what they make of `p.grad` is this
    worker's gradient. One that takes the gradient away, or steps, is refused.

    Contract: every rank runs backward passes in the same order. Blocks at the end of `backward()`.

    Attributes:
        ready_s: when each gradient was there in the last pass that was averaged, from its first one.
        were_finite: whether the means of the last pass were, of which that is known.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        exchange: Exchange,
        listener: PassListener,
        tracer: Tracer,
        weight: Callable[[], float],
        own_sizes: Collection[str] = (),
    ) -> None:
        """Puts the hooks in.

        Args:
            parameters: that are averaged, by name.
            exchange: averages them.
            listener: is told of passes.
            tracer: where spans go.
            weight: of this worker in the next mean, in units of the usual one.
            own_sizes: parameters whose means are as large though some workers bring nothing, such as signs.
        """
        self._nonfinite_rounds = 0
        self.ready_s: dict[str, float] = {}
        self.were_finite = True
        self._listener, self._weight_of_next = listener, weight
        self._own_sizes = frozenset(own_sizes)
        self._enabled = self._finite = True
        self._share = self._weight = 1.0
        self._parameters = parameters
        self._exchange = exchange
        self._tracer = tracer
        self._views: dict[str, Tensor] = {}
        self._bucket_of: dict[str, int] = {}
        for number, bucket in enumerate(exchange.buckets):
            self._views |= bucket.views
            self._bucket_of |= dict.fromkeys(bucket.views, number)
        self._averaged: set[str] = set()
        self._unkept: set[int] = set()
        self._is_finite: Callable[[], bool] | None = (
            None  # of the last pass's means, until somebody must know
        )
        self._stepped_with: set[int] | None = None  # buckets, where that was not known yet at the step
        self._aside: dict[str, Tensor] = {}
        self._arrived: set[str] = set()
        self._missing: list[int] = []
        self._running = False
        self._outermost = (
            -1
        )  # the backward pass at whose end all that is nested in it ends, by autograd's number
        self._led: tuple[Gradients, ...] = ()
        self._is_led = False
        self._begun_s = 0.0
        self._exposed_s = 0.0
        self._versions: dict[str, int] = {}
        # Autograd keeps a parameter's accumulator, and so its hook, only while someone else does.
        self._accumulators = {name: accumulator_of(parameter) for name, parameter in parameters.items()}
        self._handles: list[RemovableHandle] = []
        self._hook_of: dict[str, RemovableHandle] = {}
        for name, parameter in parameters.items():
            self._handles.append(
                self._accumulators[name].register_prehook(_Hook(self, name, "_before_gradient"))
            )
            self._hook_of[name] = parameter.register_post_accumulate_grad_hook(
                _Hook(self, name, "_on_gradient")
            )
        self._handles += self._hook_of.values()

    def lead(self, others: Sequence[Gradients]) -> None:
        """Has the passes of others, for other parameters of the same model, be part of the passes here."""
        self._led = tuple(others)
        for other in others:
            other._is_led = True

    def begin_backward(self) -> None:
        """Hears that a backward pass came to the model's outputs: what is nested in it ends with it."""
        task = torch._C._current_graph_task_id()
        if self._running or task == self._outermost:
            return
        self._outermost = task
        _at_end_of_backward(functools.partial(self._end_outermost, task))

    def accumulate(self, on: bool) -> None:
        """Switches averaging off and on."""
        self._enabled = not on

    @property
    def nonfinite_rounds(self) -> int:
        """How many passes ended with a mean that is not finite."""
        self._decide()
        return self._nonfinite_rounds

    def count_nonfinite(self) -> None:
        """Counts a pass whose means are not finite, as whoever waited for them bucket by bucket found."""
        self._nonfinite_rounds += 1

    def take_finite(self) -> bool:
        """Whether all means were finite since this was last asked."""
        self._decide()
        finite, self._finite = self._finite, True
        return finite

    def scale_means(self, share: float) -> None:
        """Multiplies the means of the present pass: all weights over those of workers that took part."""
        self._share = share

    @property
    def weight(self) -> float:
        """This worker's weight in the present pass, in units of the usual one."""
        return self._weight

    def skip(self) -> None:
        """Takes part in a pass with nothing of this worker's; `p.grad` is the others' mean afterwards."""
        for name in self._parameters:
            self._before_gradient(name)
        self._open(weight=0.0)
        self._end()

    def remove(self) -> None:
        """Takes the hooks out; gradients stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._accumulators.clear()
        self._unkept.clear()
        self._is_finite = None

    def take_exposed_s(self) -> float:
        """Returns how long passes waited after their own work was done, since this was last asked."""
        exposed_s, self._exposed_s = self._exposed_s, 0.0
        return exposed_s

    def settle(self, *, waits: bool = True) -> None:
        """Adds back what `accumulate` passes set aside, where no averaging pass followed them.

        Args:
            waits: whether to learn now if the means are finite, for which the host waits for a device; else it is
                learnt when the next pass begins.

        Raises:
            AttachError: a backward pass failed midway, so that ranks are not in step any more.
        """
        if self._running:
            raise AttachError(
                "the last backward pass did not end: it raised, and its gradients were not averaged. Close the run, "
                "load a checkpoint and attach again."
            )
        self._outermost = -1
        if waits:
            self.keep()
        elif self._is_finite is not None:
            self._stepped_with = self._present()
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

    def stand_in(self, *, is_finite: bool) -> None:
        """Makes gradients where there are none: a scaler that finds none at all refuses to step.

        Args:
            is_finite: whether the means that they stand for were, and so is what a scaler finds.
        """
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.full_like(parameter, 0.0 if is_finite else torch.inf)

    def forget_some(self, names: Iterable[str]) -> None:
        """Drops what is known of some gradients, whose means are not to be stepped with."""
        for name in names:
            self._aside.pop(name, None)
            self._averaged.discard(name)

    def averaged(self) -> list[Tensor]:
        """Returns the gradients that hold means now."""
        return [view for name, view in self._views.items() if self._parameters[name].grad is view]

    def keep(self) -> None:
        """Keeps what passes taught stages and averagers, of buckets whose means the user has not dropped."""
        self._decide()
        if self._unkept:
            present = self._present() if self._stepped_with is None else self._stepped_with
            for bucket in self._unkept & present:
                self._exchange.keep(bucket)
        self._unkept.clear()
        self._stepped_with = None

    def _present(self) -> set[int]:
        """Returns the buckets of which the user has not dropped all gradients."""
        return {
            number
            for number, bucket in enumerate(self._exchange.buckets)
            if any(self._parameters[name].grad is not None for name in bucket.views)
        }

    def collect(self, count_users: Callable[[], Sequence[float]]) -> None:
        """Waits for all means and makes them the gradients."""
        self._exchange.end()
        users = count_users()
        self.deliver(users, is_finite=self._exchange.arrive())

    def deliver(
        self, users: Sequence[float], *, is_finite: Callable[[], bool], dropped: Collection[str] = ()
    ) -> None:
        """Makes all means the gradients.

        Args:
            users: on how many ranks each parameter took part.
            is_finite: tells whether all means are; asked when the next pass or a step begins, at the latest, for on a
                device the host waits for it.
            dropped: parameters whose gradients the user dropped or replaced meanwhile.
        """
        self._is_finite = is_finite
        for name, count in zip(self._parameters, users, strict=True):
            if name in dropped:
                self.forget_some([name])
            else:
                self.deliver_one(name, count)

    def deliver_one(self, name: str, num_users: float) -> None:
        """Makes a mean the parameter's gradient, unless no rank used it and no leftover arrived for it."""
        parameter, view, aside = self._parameters[name], self._views[name], self._aside.pop(name, None)
        if self._share != 1.0 and name not in self._own_sizes:
            view.mul_(self._share)
        if aside is not None:
            view.add_(aside)
        if num_users > 0 or aside is not None or view.any():
            parameter.grad = view
            self._averaged.add(name)
        else:
            parameter.grad = None

    def _decide(self) -> None:
        """Learns whether the last pass's means were finite."""
        if self._is_finite is None:
            return
        is_finite, self._is_finite = self._is_finite, None
        self.were_finite = is_finite()
        if self.were_finite:
            self._unkept = set(range(len(self._exchange.buckets)))
        else:
            self._finite = False
            self._nonfinite_rounds += 1

    def _before_gradient(self, name: str) -> None:
        """Sets an averaged gradient aside before autograd adds to it."""
        self._listener.before_pass()
        if not self._accumulators:  # members changed, and other hooks see to this pass
            return
        if self._unkept or self._is_finite is not None:
            self.keep()
        parameter = self._parameters[name]
        _make_last(parameter, self._hook_of[name])
        self._versions[name] = parameter._version
        if parameter.grad is None:  # the user dropped it, and with it what was set aside of it
            self._aside.pop(name, None)
        elif name in self._averaged and parameter.grad is self._views[name]:
            self._aside[name] = parameter.grad.clone()
            parameter.grad = None
        self._averaged.discard(name)

    def _on_gradient(self, name: str) -> None:
        parameter = self._parameters[name]
        gradient = parameter.grad
        if gradient is None or parameter._version != self._versions.pop(name, parameter._version):
            raise AttachError(
                f"parameter {name} was stepped, or its gradient taken away, by a hook of its own during backward, "
                "before the mean of all workers was there; take that hook out, and step with the attached optimizer."
            )
        if gradient.layout != torch.strided:
            raise AttachError(
                f"parameter {name} has a sparse gradient ({gradient.layout}), which cannot be averaged in a bucket; "
                "build the layer with sparse=False."
            )
        if gradient.requires_grad:
            raise AttachError(
                f"the gradient of {name} was computed with create_graph=True, and a mean over workers has no graph; "
                "compute it with torch.autograd.grad(…, create_graph=True), as for a gradient penalty, and call "
                "backward() on the loss made of it."
            )
        if not self._enabled:
            return
        if not self._running:
            self._open(weight=self._weight_of_next())
            if self._outermost < 0 and not self._is_led:
                _at_end_of_backward(self._end_unless_nested)
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
            self._listener.before_ready(bucket)
            self._exchange.ready(bucket)

    def _open(self, *, weight: float) -> None:
        self._begun_s = time.perf_counter()
        self._running = True
        self._weight = weight
        self._arrived = set()
        self._missing = [len(bucket.views) for bucket in self._exchange.buckets]
        self._exchange.begin(self._listener.begin())

    def _fill(self, name: str, gradient: Tensor) -> None:
        view = self._views[name]
        if gradient is not view:
            view.copy_(gradient)
            self._parameters[name].grad = view
        if self._weight != 1.0:
            view.mul_(self._weight)

    def _end_unless_nested(self) -> None:
        if self._running and self._outermost < 0:
            self._end()

    def _end_outermost(self, task: int) -> None:
        if self._outermost == task:
            self._outermost = -1
            self._end_unless_nested()

    def _end(self) -> None:
        self._running = False
        waiting_since_s = time.perf_counter()
        self._tracer.record("compute", "backward", self._begun_s, waiting_since_s)
        used = [self._complete(name, parameter) for name, parameter in self._parameters.items()]
        for bucket, missing in enumerate(self._missing):
            if missing:
                self._listener.before_ready(bucket)
        self._listener.end(torch.tensor(used, dtype=torch.float32))
        self._exposed_s += time.perf_counter() - waiting_since_s
        self._tracer.record("compute", "wait for means", waiting_since_s, time.perf_counter())
        for other in self._led:
            other._end_with(self._weight)

    def _end_with(self, leaders_weight: float) -> None:
        """Ends the pass that belongs to another's, whether or not it reached a parameter here."""
        if not self._running:
            self._open(weight=self._weight_of_next() if leaders_weight else 0.0)
        self._end()

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


class _Hook:
    """A hook on a parameter; one that is copied or saved along with it does nothing."""

    def __init__(self, gradients: Gradients | None, name: str, method: str) -> None:
        self._gradients, self._name, self._method = gradients, name, method

    def __call__(self, *_: object) -> None:
        if self._gradients is not None:
            getattr(self._gradients, self._method)(self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, "", "")

    def __deepcopy__(self, memo: object) -> _Hook:
        return _Hook(None, "", "")


def _at_end_of_backward(call: Callable[[], None]) -> None:
    """Has autograd call at the end of the backward pass under way, as DDP and FSDP do."""
    torch.autograd.Variable._execution_engine.queue_callback(call)


def _make_last(parameter: Parameter, handle: RemovableHandle) -> None:
    """Has our hook run after all others on the parameter, also those that were registered since."""
    hooks = parameter._post_accumulate_grad_hooks
    if hooks is not None and next(reversed(hooks)) != handle.id:
        hooks[handle.id] = hooks.pop(handle.id)


@torch.enable_grad()
def accumulator_of(parameter: Tensor) -> Node:
    """Returns the node that adds to a parameter's gradient; unlike the parameter, it is silent in `autograd.grad`."""
    alias = parameter.expand_as(parameter).grad_fn
    assert alias is not None
    node = alias.next_functions[0][0]
    assert node is not None
    return node
