"""What happens around every step of the user's optimizers, in its order."""

from __future__ import annotations

import logging
import time
from typing import NoReturn, Protocol, final

from tightwire.runtime.auto import Pilot
from tightwire.runtime.buffers import BufferSync
from tightwire.runtime.carried import Carried
from tightwire.runtime.course import Course
from tightwire.runtime.elastic_auto import ElasticPilot, ElasticTrainee
from tightwire.runtime.evaluation import Evaluation
from tightwire.runtime.guard import Guard
from tightwire.runtime.keeping import Keeping, Resumable
from tightwire.runtime.passes import ForwardWatch
from tightwire.runtime.record import Writer
from tightwire.runtime.tuning import Tuner
from tightwire.transport import shutdown

log = logging.getLogger("tightwire")


class Stepped(ElasticTrainee, Resumable, Protocol):
    """A run, seen by those who act between its steps."""

    def close(self) -> None:
        """Lets go of the model and the optimizers."""


@final
class AroundStep:
    """Hears of every step, and has each part of a run do its share of it; see `StepListener`.

    Attributes:
        writer: is told of every step, where there is one.
        accumulated_at: the engine's count of rounds, if gradients were accumulated since the last step; else -1.
    """

    def __init__(
        self,
        run: Stepped,
        course: Course,
        *,
        guard: Guard,
        evaluation: Evaluation,
        buffers: BufferSync,
        passes: ForwardWatch | None,
        pilot: Pilot | Tuner | ElasticPilot | None,
        keeping: Keeping | None,
        carried: Carried | None,
    ) -> None:
        """Takes the parts of a run.

        Args:
            run: the user's.
            course: its own, as all that follow.
            guard: notices another model or optimizer.
            evaluation: must be over.
            buffers: are made equal for the rounds of a step.
            passes: None in a world of one.
            pilot: who chooses the plan, or its schedule, while training.
            keeping: keeps snapshots.
            carried: is told which step was made last.
        """
        self.writer: Writer | None = None
        self.accumulated_at = -1
        self._run, self._course, self._now = run, course, course.now
        self._guard, self._evaluation, self._buffers = guard, evaluation, buffers
        self._passes, self._pilot, self._keeping, self._carried = passes, pilot, keeping, carried
        self._began_s = 0.0

    def before_step(self) -> None:
        """Hears that the optimizers are about to step."""
        if self._pilot is not None:
            self._pilot.before_step()
        self._course.begin_training()
        if not self._now.engine.is_silent:
            self._guard.check()
        self._evaluation.require_over()
        if self._passes is not None:
            self._passes.hear_step()
        self._began_s = time.perf_counter()
        self._now.is_stepping = True
        self._now.context.membership.guard(self._now.engine.before_step)

    def more_gradients(self) -> None:
        """Hears that gradients were computed anew within a step."""
        self._now.engine.more_gradients()

    def after_step(self) -> None:
        """Hears that the optimizers have stepped."""
        course, now, context = self._course, self._now, self._now.context
        now.step += 1
        self.accumulated_at = -1
        context.tracer.record("compute", "optimizer", self._began_s, time.perf_counter())
        context.membership.guard(lambda: now.engine.after_step(now.step), can_wait=now.engine.postpones)
        self._settle_buffers()
        exposed_s = now.engine.exposed_s
        now.record.note_wait(exposed_s)
        if self.writer is not None:  # before another plan or other members, whose times begin anew
            now.record.log(self.writer, now.engine, now.context.transport.bytes_sent, now.step)
        course.end_step()
        if course.has_left:
            self._go_by_notice()
        self._settle_buffers()
        if self._pilot is not None:
            self._pilot.after_step(self._run, exposed_s)
        course.end_phase()
        now.record.end_step()
        if self._keeping is not None:
            self._keeping.after_step(self._run, now.step if now.is_alone else now.engine.rounds)
        if self._carried is not None:
            self._carried.note_step(now.step)
        now.is_stepping = False

    def _settle_buffers(self) -> None:
        """Makes buffers equal for the rounds of this step; also for one that is repeated without a lost member."""
        while self._buffers.are_due:
            self._now.context.membership.guard(self._buffers.settle)

    def _go_by_notice(self) -> NoReturn:
        """Ends this worker, which was told to leave (SIGTERM) and has left; the others go on."""
        self._run.close()
        shutdown()
        log.warning(
            "this worker was told to leave, and leaves after step %d; the others go on.", self._now.step
        )
        raise SystemExit(0)
