"""Mean gradients: every backward pass ends with an agreement."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS

from tightwire.architecture.round import Round
from tightwire.errors import AttachError
from tightwire.plan import Plan
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines.engine import BaseEngine, Position
from tightwire.runtime.engines.memory import (
    fitting,
    have_finite_gradients,
    load_memory,
    memory,
    of_own_size,
    rescale,
    shared_part,
)
from tightwire.runtime.gradients import Gradients, PassListener
from tightwire.runtime.membership import Called
from tightwire.runtime.observed import GradientWatch
from tightwire.runtime.overlap.forward import ForwardOverlap
from tightwire.runtime.overlap.no_overlap import NoOverlap
from tightwire.runtime.step import Options

HINT = (
    "%d backward passes before one step are as many rounds, each with the bytes of all gradients: with all but the "
    "last inside `with run.accumulate():` it is one round, with the same outcome."
)

log = logging.getLogger("tightwire")


class GradientEngine(BaseEngine):
    """Every backward pass ends with the mean gradient, or with the means on their way (bsp)."""

    keeps_replicas_equal = True
    survives = True

    def __init__(self, parameters: Mapping[str, Parameter], plan: Plan, context: RunContext) -> None:
        self._plan = plan
        _require_lossless_for_lbfgs(plan, context)
        self._context = context
        self._exchange = context.exchange(parameters, plan)
        self._roll = context.roll(len(parameters))
        self._parameters = parameters
        self._rounds_before, self._steps_late = 0, plan.sync.steps_late
        self._unit = context.membership.usual_weight  # in which stages remember gradients
        self._arrived = 0  # rounds whose means are here
        self._called: Called | None = None  # for the round under way
        self._trained_rounds = self._rounds_stepped = 0
        self._is_hinted = False
        schedule = plan.schedule
        overlaps = schedule.overlaps_forward
        self.compares_replicas = (
            not overlaps
        )  # else a layer may still wait for its step when others are compared
        self._is_void = False  # the step under way is to change nothing, and a scaler looks at it before
        self._were_finite = True  # the means of the last round agreed on, where this worker has not seen them
        self._owes_step = False  # the user has made it, and its means are still to come
        self._owed_under: Sequence[Options] = ()
        self._overlap = self._forward_overlap(str(schedule)) if overlaps else self._no_overlap()
        self.gradients = self._overlap.gradients
        self._watch = (
            GradientWatch(self._exchange) if schedule.measures and context.observed.wire is None else None
        )

    @property
    def last_round(self) -> int:  # type: ignore[override]
        """Counted on from a checkpoint; under `delayed`, of so many rounds ago."""
        return max(0, self._rounds_before + self.rounds - self._steps_late)

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """Rounds whose mean was not finite."""
        return self.gradients.nonfinite_rounds

    def accumulating(self, on: bool) -> None:  # noqa: D102
        self.gradients.accumulate(on)

    def skip(self) -> None:  # noqa: D102
        self.gradients.skip()

    def begin_backward(self) -> None:  # noqa: D102
        self.gradients.begin_backward()

    def weigh(self, weight: float) -> None:  # noqa: D102
        self._context.membership.weigh(weight)

    def wait(self) -> None:  # noqa: D102
        self._overlap.wait()

    def before_step(self) -> None:  # noqa: D102
        self.exposed_s = 0.0
        self._take_gradients()

    def more_gradients(self) -> None:  # noqa: D102
        self._is_hinted = True  # a closure that is called several times needs every one of its rounds
        self._take_gradients()

    def _take_gradients(self) -> None:
        if self._is_void:
            self._is_void = False
            self.gradients.forget()
        self.exposed_s += self.gradients.take_exposed_s() + self._overlap.take_exposed_s()
        if self._overlap.before_step():
            return
        if self._context.optimizers.skip_by_themselves:
            self.gradients.settle(
                waits=False
            )  # the means are the same everywhere, and so is what they make of them
            return
        self.gradients.settle()
        if not self.gradients.take_finite() and not have_finite_gradients(self._parameters.values()):
            self.gradients.forget()

    def after_step(self, step: int) -> None:  # noqa: D102
        self._overlap.after_step()
        passes, self._rounds_stepped = self.rounds - self._rounds_stepped, self.rounds
        if passes > 1 and not self._is_hinted:
            self._is_hinted = True
            log.warning(HINT, passes)

    def needs_rebuild(self) -> bool:  # noqa: D102
        if self._watch is None or not self._watch.note(self.gradients.ready_s):
            return False
        self._overlap.land_everything()
        self._context.observed.propose(self._watch.ready_s(), self._watch.wire())
        return True

    def flush(self) -> None:
        """Sends zeros in the passes of ranks whose training goes on, and ends with the parameters of the last one."""
        self._overlap.land_everything()
        self.gradients.keep()
        called_bytes = self._roll.until_all_are_finished(self._send_zeros)
        self.planned_bytes += called_bytes
        self.planned_bytes += self._context.membership.even_out(
            self._context.transport, self._parameters.values(), self._trained_rounds
        )
        self.gradients.scale_means(1.0)

    def follow(self) -> None:
        """Takes part in one round of ranks whose training goes on, if there are any. Every rank that is finished."""
        called = self._roll.call(present=False)
        self.planned_bytes += self._roll.bytes_sent
        if called.present:
            self._send_zeros(called)

    def consensus(self) -> Mapping[str, Tensor]:  # noqa: D102
        self._overlap.land_everything()
        return {}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        self._overlap.land_everything()
        self.gradients.keep()
        return {
            "rounds": self._rounds_before + self.rounds,
            "memory": memory(self._exchange.averagers),
            "unit": self._unit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._overlap.land_everything()
        self.gradients.keep()
        load_memory(self._exchange.averagers, state["memory"])
        self._unit = state.get("unit", self._unit)
        self.resume_at(state["rounds"])

    def resume_at(self, rounds: int) -> None:  # noqa: D102
        self._rounds_before = rounds - self.rounds

    def position(self) -> Position:  # noqa: D102
        overlap = self._overlap
        return Position(
            agreed=self._rounds_before + self._arrived,
            begun=self._rounds_before + self.rounds,
            landed=overlap.landed,
            is_stepped=overlap.is_stepped or self._owes_step,
            options=self._owed_under if self._owes_step else overlap.options,
        )

    def salvage(self) -> dict[str, Any]:
        """Drops the gradients of the step under way, on all ranks alike."""
        self.gradients.keep()
        self.gradients.forget()
        return {
            "memory": memory(self._exchange.averagers),
            "unit": self._unit,
            "were_finite": self.gradients.were_finite,
        }

    def catch_up(  # noqa: D102
        self, own: Mapping[str, Any], theirs: Mapping[str, Any], *, is_new: bool
    ) -> tuple[dict[str, Any], frozenset[str]]:
        # What its message carried, this worker does not know, so that its leftovers would count twice.
        state = {**own, "memory": shared_part(own["memory"], theirs["memory"])}
        # Whoever lacks one round steps as the others did. Who lacks all is given their count of steps, and their scale.
        state["were_finite"] = is_new or theirs.get("were_finite", True)
        return state, frozenset(self._parameters)

    def take_up(self, state: Mapping[str, Any], agreed: int) -> None:  # noqa: D102
        averagers = self._exchange.averagers
        load_memory(averagers, fitting(averagers, state["memory"], what=str(self._plan)))
        self._unit = state.get("unit", self._unit)
        self._rounds_before, self._were_finite = agreed, state.get("were_finite", True)

    def go_on(self, position: Position, *, is_lost: bool) -> None:
        """Takes part, with nothing of this worker's, in the round that others are still to make."""
        if is_lost:
            self._rounds_before += 1
        elif position.begun > max(position.agreed, self._rounds_before):
            self._owes_step, self._owed_under = position.is_stepped, position.options
            with self._context.optimizers.under(position.options):  # a schedule may have changed them since
                self.gradients.skip()
                if self._owes_step:
                    self._overlap.deliver()
                    self._context.optimizers.step_silently()
                    self.gradients.forget()
                    self._owes_step = False
            return
        if position.is_in_step and self._context.awaits_means:
            self._is_void = True
            self.gradients.stand_in(is_finite=is_lost or self._were_finite)

    def close(self) -> None:  # noqa: D102
        self._overlap.close()
        self._exchange.close()
        self._roll.close()

    def _no_overlap(self) -> NoOverlap:
        return NoOverlap(
            self._make, self._begin_round, self._count_users, self._context.habits, self._collect
        )

    def _forward_overlap(self, schedule: str) -> ForwardOverlap:
        context = self._context
        return ForwardOverlap(
            self._parameters,
            self._exchange,
            self._make,
            self._begin_round,
            self._count_users,
            context.model,
            context.optimizers,
            context.tracer,
            why=schedule,
            awaits_means=context.awaits_means,
            habits=context.habits,
            guard=context.membership.guard,
            on_landed=self._note_arrival,
        )

    def _note_arrival(self) -> None:
        self._arrived += 1
        assert self._called is not None
        self._roll.note(self._called)

    def _collect(self, collect: Callable[[], None]) -> None:
        """Ends a pass, or loses it."""

        def act() -> None:
            collect()
            self._note_arrival()

        self._context.membership.guard(act)

    def _make(self, listener: PassListener) -> Gradients:
        weight = self._context.membership.take_share
        own_sizes = of_own_size(self._parameters, self._plan, self._context)
        return Gradients(self._parameters, self._exchange, listener, self._context.tracer, weight, own_sizes)

    def _begin_round(self) -> Round:
        self.rounds, self._is_void = self.rounds + 1, False
        number, unit = self._rounds_before + self.rounds, self._context.membership.usual_weight
        rescale(self._exchange.averagers, self._unit / unit)
        self._unit = unit
        self.planned_bytes += self._exchange.bytes_in(number) + self._roll.bytes_sent
        return Round(number=number, seed=self._context.seed + number, scale=self._context.gradient_scale())

    def _count_users(self, used: Tensor) -> Callable[[], Tensor]:
        """Prepares to add up over ranks which parameters took part."""
        self._trained_rounds += 1
        call = self._roll.bring(used, present=True, weight=self.gradients.weight)

        def count() -> Tensor:
            called = self._called = call()
            membership = self._context.membership
            membership.note_weight(called)
            self.gradients.scale_means(self._context.transport.size / called.weight if called.weight else 1.0)
            return called.own

        return count

    def _send_zeros(self, called: Called) -> None:
        self._context.membership.note_weight(called)  # as those do whose round it is
        # The roll that told of the round is part of it.
        self._exchange.begin(self._begin_round())
        self.planned_bytes -= self._roll.bytes_sent
        for bucket in self._exchange.buckets:
            bucket.flat.zero_()
        self._exchange.end()
        self._exchange.wait()
        self._arrived += 1


def _require_lossless_for_lbfgs(plan: Plan, context: RunContext) -> None:
    """Makes sure that LBFGS compares gradients that are what they are said to be.

    Raises:
        AttachError: what is sent is not the gradient.
    """
    lossy = not plan.sender.lossless
    if lossy and any(isinstance(member, LBFGS) for member in context.optimizers.members):
        raise AttachError(
            f"LBFGS divides by differences of gradients, and {plan.compression_text} changes each by an error of its "
            "own; choose a lossless plan, such as bsp, or another optimizer."
        )
