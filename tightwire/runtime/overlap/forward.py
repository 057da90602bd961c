"""Means under way while the next forward runs; each parameter is updated just before it is read."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from tightwire.architecture.round import Round
from tightwire.compression.checks import FiniteCheck
from tightwire.errors import AttachError
from tightwire.runtime.background import Background
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.gradients import Gradients, PassListener
from tightwire.runtime.overlap.no_overlap import Begin, CountUsers
from tightwire.runtime.overlap.pending import hold, release
from tightwire.runtime.overlap.piecemeal import Piecemeal
from tightwire.runtime.overlap.touch import TouchListener
from tightwire.runtime.overlap.visible import refuse_compiled, require_visible
from tightwire.runtime.step import Optimizers, Options
from tightwire.runtime.trace import Tracer

_TOUCHED = (
    "a gradient was read or changed between backward() and optimizer.step(), while the means are on their way. Call "
    "run.wait() after backward() if you clip or look at gradients (it costs the overlap with the next forward: the "
    "step then waits for all means); attach with scaler=… under AMP; or choose another schedule, such as mgwfbp."
)


class ForwardOverlap:
    """Lets a backward pass end before the means are there, and the optimizer's step before it is made.

    Three phases. *Landed*: nothing is under way. *Up*, after a backward pass: gradients are held; reading one is an
    error, for between backward and step means are not there yet; `wait` lands them. *Stepped*, after
    `optimizer.step()`, which updated nothing: parameters are held too, and whoever reads one waits for its bucket and
    makes the step for it. What is not read meanwhile is landed by the next backward pass.

        landed --backward--> up --step()--> stepped --all read, or next backward--> landed
                             up --wait(), or next backward--> landed

    Two things see a read: a hook before the forward of every module with parameters of its own, and, for
    everything that is no module's forward, `pending`. What neither sees is refused: scripted and compiled modules.

    A gradient that the user dropped while its mean was under way (`p.grad` is None) stays dropped.

    A step is dropped on all ranks alike if any rank's gradients are not finite, which ranks tell each other after
    backward; if the *sum* of finite gradients overflows, its bucket alone is, for others may have been stepped with.

    Contract: local, all of it; every wait is for transfers that go on by themselves on every rank.

    Attributes:
        gradients: ends its passes here.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        exchange: Exchange,
        make: Callable[[PassListener], Gradients],
        begin: Begin,
        count_users: CountUsers,
        model: nn.Module,
        optimizers: Optimizers,
        tracer: Tracer,
        *,
        why: str,
        awaits_means: bool,
        habits: TouchListener | None = None,
        guard: Callable[[Callable[[], None]], None] = lambda act: act(),
        on_landed: Callable[[], None] = lambda: None,
    ) -> None:
        """Puts the hooks in.

        Args:
            parameters: that are averaged, by name.
            exchange: under whose way the means are.
            make: makes the gradients whose passes end here.
            begin: makes the round that a pass is.
            count_users: see `CountUsers`.
            model: whose modules read the parameters.
            optimizers: whose steps are made later.
            tracer: where waits are recorded.
            why: the schedule's name, for errors.
            awaits_means: a scaler looks at gradients before each step, so every pass waits at once.
            habits: where `auto` chose the schedule: a gradient that is touched is waited for, and that is noted.
            guard: makes waits; where members are elastic, it goes on without the rest of one that lost a member.
            on_landed: called when all means of a round have arrived and were stepped with, or are the gradients.

        Raises:
            AttachError: a model or an optimizer with which this cannot work.
        """
        require_visible(model, why)
        self._exposed_s = 0.0
        self._guard, self._on_landed = guard, on_landed
        self._awaits_means, self._habits = awaits_means, habits
        self._phase: Literal["landed", "up", "stepped"] = "landed"
        self._parameters, self._exchange, self._begin = parameters, exchange, begin
        self._count_users, self._tracer = count_users, tracer
        self._piecemeal = Piecemeal(optimizers, why)
        self._views = {name: view for b in exchange.buckets for name, view in b.views.items()}
        self._bucket_of = {id(parameters[n]): i for i, b in enumerate(exchange.buckets) for n in b.views}
        self._up: set[int] = set()
        self._dropped: set[str] = set()
        self._users: Future[list[float] | None] = Future()
        self._spoiled = False
        self._checks = [FiniteCheck(bucket.flat.device) for bucket in exchange.buckets]
        self._lock = threading.RLock()
        self._control = Background("tightwire-control")
        self._handles: list[RemovableHandle] = self._watch(model)
        for member in optimizers.members:
            self._handles.append(member.register_state_dict_pre_hook(_LandBefore(self)))
            self._handles.append(member.register_load_state_dict_pre_hook(_LandBefore(self)))
        self.gradients = make(self)

    def before_pass(self) -> None:
        """Lands what is under way before autograd adds to any gradient."""
        self._guard(self.land_everything)

    def begin(self) -> Round:  # noqa: D102
        return self._begin()

    def before_ready(self, bucket: int) -> None:
        """Looks at a bucket before others' gradients come into it."""
        self._checks[bucket].ask(self._exchange.buckets[bucket].flat)

    def end(self, used: Tensor) -> None:
        """Ends a backward pass with the means on their way."""
        self._spoiled = False
        self._exchange.end()
        count = self._count_users(used)

        def tell() -> list[float] | None:
            if not all(
                self._checks
            ):  # on a device this thread waits for the answers, and not the training loop
                used.fill_(torch.nan)  # whoever adds it up learns of it
            return _users_of(count())

        self._users = self._control.submit(tell)
        self._phase = "up"
        self._dropped = set()
        for name, parameter in self._parameters.items():
            parameter.grad = self._views[name]
            hold(self._views[name], self._touch)
        if self._awaits_means:
            self.wait()

    def take_exposed_s(self) -> float:
        """Returns how long anybody waited for means, since this was last asked."""
        exposed_s, self._exposed_s = self._exposed_s, 0.0
        return exposed_s

    @property
    def landed(self) -> int:
        """Buckets of a round under way that were stepped with."""
        return len(self._exchange.buckets) - len(self._up) if self._phase == "stepped" else 0

    @property
    def is_stepped(self) -> bool:
        """Whether the user's step for the round under way is made."""
        return self._phase == "stepped"

    @property
    def options(self) -> Sequence[Options]:
        """Those of that step, by group."""
        return self._piecemeal.options if self.is_stepped else ()

    def wait(self) -> None:
        """Waits for all means after a backward pass; `p.grad` is the mean then."""
        self._guard(self.deliver)

    def deliver(self) -> None:
        """Waits for all means after a backward pass, and for nobody who is lost."""
        with self._lock:
            if self._phase != "up":
                return
            start_s = time.perf_counter()
            dropped = self._release_gradients()
            users = self._users.result()
            buckets = range(len(self._exchange.buckets))
            arrived = [self._exchange.wait_for(bucket) for bucket in buckets]  # all, finite or not
            finite = all(arrived) and users is not None
            self._phase = "landed"
            self.gradients.deliver(
                users or [1.0] * len(self._parameters), is_finite=lambda: finite, dropped=dropped
            )
            self._count_wait(start_s)
            self._on_landed()

    def before_step(self) -> bool:
        """Prepares for a step that changes nothing, to be made later; False: make it now, nothing is up."""
        with self._lock:
            self.land_all()
            if self._phase != "up":
                return False
            self._piecemeal.begin()
            for name, parameter in self._parameters.items():
                if parameter.grad is None:
                    self._dropped.add(name)
                elif parameter.grad is not self._views[name]:
                    raise AttachError(_TOUCHED)
                parameter.grad = None
            return True

    def after_step(self) -> None:
        """Holds the parameters until they are read."""
        with self._lock:
            if self._phase != "up":
                return
            self._phase = "stepped"
            self._up = set(range(len(self._exchange.buckets)))
            odd = set()
            for name, parameter in self._parameters.items():
                bucket = self._bucket_of[id(parameter)]
                land = functools.partial(self.land, bucket)
                if name not in self._dropped:
                    parameter.grad = self._views[name]
                    hold(self._views[name], land)
                if type(parameter) is Parameter:
                    hold(parameter, land)
                else:  # a class of the user's own sees its reads itself
                    odd.add(bucket)
            self._piecemeal.hold_state(self.land_for_state)
            for bucket in odd:
                self._land(bucket)

    def land(self, bucket: int) -> None:
        """Waits for one bucket's mean, and makes the step for its parameters."""
        self._guard(lambda: self._land(bucket))

    def _land(self, bucket: int) -> None:
        with self._lock:
            if bucket not in self._up:
                return
            start_s = time.perf_counter()
            finite, users = self._exchange.wait_for(bucket), self._users.result()
            self._count_wait(start_s)
            self._up.discard(bucket)
            names = list(self._exchange.buckets[bucket].views)
            for name in names:
                release(self._views[name])
                release(self._parameters[name])
            if finite and users is not None:
                self._exchange.keep(bucket)
                self._step(names, users)
            else:
                self._drop(names)
            if not self._up:
                self._phase = "landed"
                self._piecemeal.release_state()
                self._on_landed()

    def land_all(self) -> None:
        """Lands what a step left under way."""
        with self._lock:
            for bucket in sorted(self._up):
                self._land(bucket)

    def land_for_state(self) -> None:
        """Lands what a step left under way, before an optimizer's state is read."""
        self._guard(self.land_all)

    def land_everything(self) -> None:
        """Leaves nothing under way."""
        if self._phase != "landed":
            self.deliver()
            self.land_all()

    def close(self) -> None:
        """Takes everything out; what did not land is lost. Local."""
        self.gradients.remove()
        for handle in self._handles:
            handle.remove()
        for name, parameter in self._parameters.items():
            release(self._views[name])
            release(parameter)
        self._up, self._phase = set(), "landed"
        self._piecemeal.release_state()
        self._control.close()

    def _watch(self, model: nn.Module) -> list[RemovableHandle]:
        handles = []
        for module in model.modules():
            own = [self._bucket_of.get(id(p)) for p in module._parameters.values() if p is not None]
            if buckets := sorted({b for b in own if b is not None}, reverse=True):
                handles.append(module.register_forward_pre_hook(_LandBefore(self, tuple(buckets))))
        return handles

    def land_some(self, buckets: Sequence[int]) -> None:
        """Lands buckets that are about to be read."""
        if self._up:
            for bucket in buckets:
                self.land(bucket)

    def _touch(self) -> None:
        """Hears that a gradient is read or changed while its mean is under way."""
        if self._habits is None:
            raise AttachError(_TOUCHED)
        self._habits.note_touch()
        self.wait()

    def _release_gradients(self) -> set[str]:
        """Makes gradients ordinary tensors again; returns of which parameters the user dropped or replaced them."""
        dropped = {n for n, p in self._parameters.items() if p.grad is not self._views[n]}
        for view in self._views.values():
            release(view)
        return dropped

    def _step(self, names: list[str], users: list[float]) -> None:
        """Makes the step for parameters that have just arrived; what the user made of `p.grad` meanwhile stays."""
        number_of = self._number_of
        self.gradients.forget_some(self._dropped.intersection(names))
        kept = [name for name in names if name not in self._dropped]
        held = {name: self._parameters[name].grad for name in kept}
        for name in kept:
            self.gradients.deliver_one(name, users[number_of[name]])
        self._piecemeal.step(self._parameters[name] for name in kept)
        for name in kept:
            if held[name] is not self._views[name]:
                self._parameters[name].grad = held[name]

    def _drop(self, names: list[str]) -> None:
        if not self._spoiled:
            self._spoiled = True
            self.gradients.count_nonfinite()
        for name in names:
            if self._parameters[name].grad is self._views[name]:
                self._parameters[name].grad = None
        self.gradients.forget_some(names)

    @functools.cached_property
    def _number_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._parameters)}

    def _count_wait(self, start_s: float) -> None:
        now_s = time.perf_counter()
        self._exposed_s += now_s - start_s
        self._tracer.record("compute", "wait for means", start_s, now_s)


class _LandBefore:
    """A hook that lands buckets, or all, before something reads them; one that is copied or saved does nothing."""

    def __init__(self, overlap: ForwardOverlap | None = None, buckets: tuple[int, ...] | None = None) -> None:
        self._overlap, self._buckets = overlap, buckets

    def __call__(self, *_: object) -> None:
        if self._overlap is None:
            return
        if torch.compiler.is_compiling():
            refuse_compiled()
        if self._buckets is None:
            self._overlap.land_for_state()
        else:
            self._overlap.land_some(self._buckets)

    def __reduce__(self) -> tuple[Any, ...]:
        return _LandBefore, ()

    def __deepcopy__(self, memo: object) -> _LandBefore:
        return _LandBefore()


def _users_of(counted: Tensor) -> list[float] | None:
    """Returns how many ranks have a gradient for each parameter; None where one is not finite."""
    return None if counted.isnan().any() else counted.tolist()
