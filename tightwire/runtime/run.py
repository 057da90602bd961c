"""A run: a model, an optimizer and a plan, bound together for a while."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import statistics
import struct
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire.errors import AttachError, PeerError
from tightwire.plan import Phases, Plan
from tightwire.runtime.agreement import copy_from_first
from tightwire.runtime.auto import Pilot
from tightwire.runtime.context import RunContext
from tightwire.runtime.engines import Alone, Engine, Retired, build_engine
from tightwire.runtime.evaluation import Evaluation
from tightwire.runtime.guard import Guard
from tightwire.runtime.phases import spelled_out
from tightwire.runtime.report import Report, typical_step_s
from tightwire.runtime.trace import Tracer
from tightwire.runtime.tuning import Tuner
from tightwire.runtime.variance import configure_variance
from tightwire.sync import Sync
from tightwire.transport import Counting, Transport

Buffers = Literal["start", "every-step"]

# Why ranks meet in a flush.
FINISHING, TURNING, LEAVING, STAYING = range(4)

log = logging.getLogger("tightwire")


class Writer(Protocol):
    """What is needed of a TensorBoard `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Notes a value."""


class Run:
    """Keeps a model in step with its replicas while the context is open; made by `attach`.

    The training loop is unchanged. Under plans that average gradients, `p.grad` is the mean after `backward()`.
    Leaving the context calls `finish`, unless an exception is on its way.

    Contract: every rank attaches, steps, checkpoints and finishes alike.

    Attributes:
        plan: in force at present.
        step: optimizer steps made so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        phases: Phases,
        context: RunContext,
        *,
        buffers: Buffers = "start",
        predicted_step_s: float | None = None,
        why: tuple[str, ...] = (),
        pilot: Pilot | Tuner | None = None,
    ) -> None:
        self._asked, self._phases = phases, spelled_out(phases)
        self.plan = self._phases.at(1)
        self.step = 0
        self._predicted_step_s, self._why, self._pilot = predicted_step_s, why, pilot
        self._model, self._optimizer, self._context, self._buffers = model, optimizer, context, buffers
        self._tracer: Tracer = context.tracer
        self._guard = Guard(model, optimizer)
        self._engines: list[Engine] = [Alone()]
        self._steps_made = 0
        self._steps_s: list[float] = []
        self._exposed_s: list[float] = []
        self._step_end_s: float | None = None
        self._closed = self._has_left = False
        self._waited_s, self._turns_at = 0.0, 0
        self._waited_s_by_worker: tuple[float, ...] = ()
        self._writer: Writer | None = None
        self._ages_logged: Counter[int] = Counter()
        self._buffer_transport = Counting(context.transport.inner)
        self._evaluation = Evaluation(model, context)
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        if context.transport.size == 1:
            return
        self._trace_forward()
        try:
            self._enter(self.plan)
            if pilot is not None:
                pilot.begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not isinstance(error, PeerError):
                self.transport.fail(error)  # before channels close, so that others learn why they do
            if kind is None and not self._has_left:
                self.finish()
        finally:
            self.close()

    @property
    def transport(self) -> Transport:
        """Between this worker and the others."""
        return self._context.transport.inner

    @property
    def is_server(self) -> bool:
        """Whether this rank is a dedicated server under the plan (`ps:servers=1`): it serves until `finish` returns.

        with tw.attach(model, optimizer, "asp/ps:servers=1") as run:
            if not run.is_server:
                train()  # the loop as ever
        """
        return self._engine.is_server()

    def adopt(self, plan: Plan) -> None:
        """Goes on under another plan, between two steps.

        What stages remember is kept where it means the same under both plans, as after a change of the ratio alone;
        where not, it is dropped, with a warning, and rounds are counted from 1 again.

        Contract: every rank, at the same step, with the same plan; blocks.
        """
        self._require_open()
        self._asked, self._phases = Phases((plan,)), spelled_out(Phases((plan,)))
        before, state = self.plan, self._enter(self._phases.at(self.step + 1))
        if state:
            self._carry_over(state, before)

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Inside, backward passes add to `p.grad` locally; the first pass after averages all of it (`no_sync`)."""
        self._engine.accumulating(True)
        try:
            yield
        finally:
            self._engine.accumulating(False)

    def wait(self) -> None:
        """Waits until `p.grad` is the mean, under schedules that let `backward()` end before it is; else returns.

        Call it between backward and step to clip or look at gradients; nothing overlaps the next forward then. Local.
        """
        self._engine.wait()

    def finish(self) -> None:
        """Completes what is under way and makes the replicas' parameters equal. Every rank; blocks.

        A rank whose data ends before that of others calls it then: it goes on taking part in the others' rounds,
        counting nothing in their means, until all have called it, and leaves with the parameters that they have.
        """
        self._require_open()
        while (why := self._meet(FINISHING)) - {FINISHING}:
            if TURNING in why:  # the others' next phase
                self._build(self._phases.at(self._turns_at + 1))

    def leave(self) -> None:
        """Leaves for good after the next round of a local method; the run is closed then, and the others go on.

        What this worker did since the last round still counts. The others go on with the mean of those who stay, and
        say so in the log. A worker that is killed cannot be replaced so: the others end with an error that names it.

        Contract: one or more ranks, between two steps, while the others train; blocks until their next round.

        Raises:
            AttachError: another kind of plan, whose ranks cannot do without each other.
        """
        self._require_open()
        if self._context.transport.size > 1:
            self._engine.leave()
            while not self._has_left:
                self._meet(LEAVING)
        self._has_left = True
        self.close()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is the one to be evaluated, equal on all ranks; training goes on afterwards as it was.

        That is the mean of the workers' parameters, or the outer model or the centre where the policy has one. What is
        in flight lands first. Buffers stay each worker's own.

        Contract: every rank, at the same step; blocks.

        Raises:
            AttachError: the optimizer steps inside, which would be undone.
        """
        self._require_open()
        with self._evaluation.of(self._engine.consensus()):
            yield

    def report_loss(self, loss: float | Tensor) -> None:
        """Tells the loss of the step under way, before `optimizer.step()`, to policies that follow it (AdaComm)."""
        self._engine.observe(loss=float(loss.detach() if isinstance(loss, Tensor) else loss))

    def report_samples(self, samples: float) -> None:
        """Tells on how many samples the step under way is made, to policies that weigh workers by them (FedAvg)."""
        self._engine.observe(samples=float(samples))

    def log_to(self, writer: Writer) -> None:
        """Writes rounds, bytes, step time, waiting and staleness of every step to a TensorBoard `SummaryWriter`."""
        self._writer = writer

    def close(self) -> None:
        """Takes out every hook and ends the communication thread; the model and the optimizer stay usable. Local."""
        if self._closed:
            return
        self._closed = True
        if self._pilot is not None:
            self._pilot.close()
        for handle in self._handles:
            handle.remove()
        self._engine.close()
        self._evaluation.close()
        self._guard.release()

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint, to be saved beside the model's and the optimizer's.

        What is under way arrives first, is part of the checkpoint, and lands once, whether training goes on or is
        resumed. Everything by parameter name; tensors are copies. Loading it and continuing equals continuing.
        """
        return {
            "version": 1,
            "plan": str(self._asked),
            "rank": self._context.transport.rank,
            "workers": self._context.transport.size,
            "step": self.step,
            "observed": self._context.observed.state(),
            "engine": self._engine.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` returned on this rank.

        Load the model's and the optimizer's state after attaching too: attaching makes parameters rank 0's. The
        rest of the plan may have changed since if its stages remember the same. After a change of the number of workers
        only the counters of steps and rounds are kept, and leftovers and momenta are dropped, with a warning.

        Raises:
            AttachError: a checkpoint of another sync, rank or model, or of stages that remember something else.
        """
        self._require_open()
        transport = self._context.transport
        if state.get("version") != 1 or _syncs(Phases.parse(state["plan"])) != _syncs(self._asked):
            raise AttachError(
                f"this checkpoint was made under the plan {state.get('plan')} (version {state.get('version')}), this "
                f"run's is {self._asked} (version 1); attach with the plan of the checkpoint, or one of the same "
                f"sync."
            )
        self.step = state["step"]
        if (plan := self._phases.at(self.step + 1)) is not self.plan:
            self._enter(plan)
        if state["workers"] != transport.size:
            warnings.warn(
                f"the checkpoint was made by {state['workers']} workers, this run has {transport.size}: leftovers "
                "and momenta are dropped, and what they held of old gradients is lost.",
                stacklevel=2,
            )
            self._engine.resume_at(state["engine"].get("rounds", 0))
            return
        if state["rank"] != transport.rank:
            raise AttachError(
                f"this is rank {state['rank']}'s checkpoint, loaded by rank {transport.rank}; every rank saves and "
                "loads its own."
            )
        if self._context.observed.take(state.get("observed")):
            self._enter(self.plan)
        self._engine.load_state_dict(state["engine"])

    def report(self) -> Report:
        """Returns what happened so far on this worker. Local."""
        choice = self._pilot.choice if self._pilot else None
        sync = self.plan.sync
        return Report(
            plan=str(self._asked),
            workers=self._context.transport.size,
            steps=self._steps_made,
            rounds=sum(engine.rounds for engine in self._engines),
            skipped=sum(engine.skipped for engine in self._engines),
            late=sum(engine.late for engine in self._engines),
            planned_bytes=sum(engine.planned_bytes for engine in self._engines)
            - self._context.spared.num_bytes
            + self._evaluation.planned_bytes,
            sent_bytes=self._context.transport.bytes_sent,
            buffer_bytes=self._buffer_transport.bytes_sent,
            step_s=typical_step_s(self._steps_s, sync.steps_per_round),
            exposed_s=statistics.fmean(self._exposed_s) if self._exposed_s else 0.0,
            predicted_step_s=choice.predicted_step_s if choice else self._predicted_step_s,
            baseline_step_s=self._pilot.baseline_step_s if self._pilot else None,
            why=choice.why if choice else self._why,
            waited_s=self._waited_s,
            waited_s_by_worker=self._waited_s_by_worker,
            staleness=self._staleness(),
        )

    def trace(self, path: str | pathlib.Path) -> None:
        """Writes what this worker did when, for Perfetto (ui.perfetto.dev) or chrome://tracing. Local."""
        self._tracer.write(path, self._context.transport.rank)

    def _carry_over(self, state: Mapping[str, Any], before: Plan) -> None:
        """Takes up what was remembered under the plan before, if it means the same under this one."""
        try:
            if before.sync == self.plan.sync:
                self._engine.load_state_dict(state)
                return
        except AttachError:  # it remembers something else
            pass
        if state["memory"]:
            warnings.warn(
                f"leftovers and momenta of {before} are dropped: they mean nothing under {self.plan}.",
                stacklevel=3,
            )

    def _enter(self, plan: Plan) -> dict[str, Any]:
        """Ends the engine of the plan before and builds the next; returns what the one before remembered."""
        self.plan = plan
        if self._context.transport.size == 1:
            return {}
        if not isinstance(self._engine, Alone):
            self._meet(TURNING)
        return self._build(plan)

    def _build(self, plan: Plan) -> dict[str, Any]:
        """Replaces the engine, in which nothing is under way; returns what it remembered."""
        self.plan = plan
        configure_variance(self._optimizer, plan)
        self._engine.close()
        state = self._engine.state_dict()
        self._engines[-1] = Retired(self._engine)
        trained = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        alone = self._context.transport.size == 1
        self._engines.append(Alone() if alone else build_engine(trained, plan, self._context))
        self._steps_s, self._exposed_s = [], []
        return state

    def _meet(self, why: int) -> set[int]:
        """Flushes, as all ranks do now, and returns for which reasons; whoever leaves is gone afterwards."""
        self._engine.flush()
        if self._context.transport.size == 1 or not self._engine.flush_is_collective():
            return {FINISHING}
        told = [
            struct.unpack("<Bdq", other)
            for other in self.transport.exchange(struct.pack("<Bdq", why, self._waited_s, self.step))
        ]
        self._waited_s_by_worker = tuple(waited_s for _, waited_s, _ in told)
        self._turns_at = max((step for reason, _, step in told if reason == TURNING), default=self.step)
        if leaving := [rank for rank, (reason, _, _) in enumerate(told) if reason == LEAVING]:
            self._go_on_without(leaving)
        return {reason for reason, _, _ in told}

    def _go_on_without(self, leaving: list[int]) -> None:
        transport = self._context.transport
        staying = [rank for rank in range(transport.size) if rank not in leaving]
        group = transport.group(staying) if staying else None
        if group is None:
            self._has_left = True
            return
        assert isinstance(group, Counting)
        self._context = self._context.over(group)
        self._evaluation.move(self._context)
        self._buffer_transport = Counting(group.inner, tally=self._buffer_transport.tally)
        if state := self._build(self.plan):
            self._carry_over(state, self.plan)
        log.warning(
            "rank %s left after step %d; the others go on with the mean of %d, renumbered in order.",
            " and ".join(map(str, leaving)),
            self.step,
            group.size,
        )

    def _staleness(self) -> dict[int, int]:
        histogram: Counter[int] = Counter()
        for engine in self._engines:
            histogram.update(engine.staleness())
        return dict(sorted(histogram.items()))

    @property
    def is_settled(self) -> bool:
        """Whether what the plan leaves open is chosen: always, but for plan or schedule `auto`, after a while."""
        return self._pilot is None or self._pilot.choice is not None

    @property
    def _engine(self) -> Engine:
        return self._engines[-1]

    def _before_step(self) -> None:
        if self._pilot is not None:
            self._pilot.before_step()
        self._guard.check()
        self._evaluation.require_over()
        self._step_start_s = time.perf_counter()
        self._engine.before_step()

    def _after_step(self) -> None:
        self.step += 1
        self._steps_made += 1
        self._tracer.record("compute", "optimizer", self._step_start_s, time.perf_counter())
        self._engine.after_step(self.step)
        if self._buffers == "every-step":
            copy_from_first(self._buffer_transport, self._model.buffers())
        exposed_s = self._engine.exposed_s
        self._exposed_s.append(exposed_s)
        self._waited_s += exposed_s
        if self._step_end_s is not None:
            self._steps_s.append(time.perf_counter() - self._step_end_s)
        if self._engine.requests_flush():
            self._meet(STAYING)
        if self._engine.needs_rebuild() and (state := self._enter(self.plan)):
            self._carry_over(state, self.plan)
        if self._pilot is not None:
            self._pilot.after_step(self, exposed_s)
        if self._writer is not None:
            self._log(self._writer)
        if self.step in self._phases.ends:  # what stages remember of one phase means nothing in the next
            self._enter(self._phases.at(self.step + 1))
        self._step_end_s = time.perf_counter()

    def _log(self, writer: Writer) -> None:
        scalars = {
            "rounds": sum(engine.rounds for engine in self._engines),
            "sent_bytes": self._context.transport.bytes_sent,
            "waited_s": self._exposed_s[-1],
        }
        if self._steps_s:
            scalars["step_s"] = self._steps_s[-1]
        if (staleness := self._staleness_since_logged()) is not None:
            scalars["staleness"] = staleness
        for name, value in scalars.items():
            writer.add_scalar(f"tightwire/{name}", value, self.step)

    def _staleness_since_logged(self) -> float | None:
        """Returns how old what was stepped with was, in the mean since the last call; None where nothing ever is."""
        seen = Counter(self._staleness())
        new, self._ages_logged = seen - self._ages_logged, seen
        return sum(age * times for age, times in new.items()) / new.total() if new else None

    def _trace_forward(self) -> None:
        started_s: list[float] = []

        def begin(*_: object) -> None:
            started_s.append(time.perf_counter())

        def end(*_: object) -> None:
            self._tracer.record("compute", "forward", started_s.pop(), time.perf_counter())

        self._handles.append(self._model.register_forward_pre_hook(begin))
        self._handles.append(self._model.register_forward_hook(end))

    def _require_open(self) -> None:
        if self._closed:
            raise AttachError("this run is closed; attach again to go on training in step.")


def _syncs(phases: Phases) -> list[Sync]:
    return [plan.sync for plan in phases.plans]
