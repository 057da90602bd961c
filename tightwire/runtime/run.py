"""A run: a model, its optimizers and a plan, bound together for a while."""

from __future__ import annotations

import atexit
import contextlib
import logging
import pathlib
import warnings
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import Parameter

from tightwire.errors import AttachError, PeerError
from tightwire.plan import Phases, Plan
from tightwire.runtime.around_step import AroundStep
from tightwire.runtime.auto import Pilot
from tightwire.runtime.buffers import BufferSync
from tightwire.runtime.carried import Carried
from tightwire.runtime.comparison import Comparison
from tightwire.runtime.context import RunContext
from tightwire.runtime.course import Course
from tightwire.runtime.elastic_auto import ElasticPilot
from tightwire.runtime.engines import Engine
from tightwire.runtime.engines.memory import load_finite_check
from tightwire.runtime.evaluation import Evaluation
from tightwire.runtime.guard import Guard
from tightwire.runtime.keeping import Keeping
from tightwire.runtime.meeting import News
from tightwire.runtime.passes import STEP_NEVER_SEEN, ForwardWatch
from tightwire.runtime.record import Writer
from tightwire.runtime.report import Report, typical_step_s
from tightwire.runtime.request import Buffers, require_servable
from tightwire.runtime.saving import RunState
from tightwire.runtime.snapshot import Snapshot
from tightwire.runtime.spans import RoundTimes
from tightwire.runtime.tuning import Tuner
from tightwire.transport import Transport

log = logging.getLogger("tightwire")

_open_runs: weakref.WeakSet[Run] = weakref.WeakSet()


class Run:
    """Keeps a model in step with its replicas while the context is open; made by `attach`.

    The training loop is unchanged. Under plans that average gradients, `p.grad` is the mean after `backward()`.
    Leaving the context calls `finish`, unless an exception is on its way.

    What happens between steps (phases, uneven ends, ranks that leave) is told in `Course`.

    Contract: every rank attaches, steps, checkpoints and finishes alike.
    """

    def __init__(
        self,
        model: nn.Module,
        phases: Phases,
        context: RunContext,
        *,
        buffers: Buffers = "start",
        predicted: Mapping[str, float] | None = None,
        why: tuple[str, ...] = (),
        pilot: Pilot | Tuner | ElasticPilot | None = None,
        facts: Mapping[str, object] | None = None,
        carried: Carried | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self._keeping = keeping
        self._predicted, self._why, self._pilot = predicted or {}, why, pilot
        self._model, self._optimizers = model, context.optimizers
        self._course = Course(phases, context, self._shared_parameters, self._move, facts, carried)
        self._now = self._course.now
        self._closed = False
        self._left = context.left
        self._buffers, self._kept_equal = BufferSync(context.transport.inner, self._shared_buffers), buffers
        self._guard = Guard(model, context.optimizers)
        self._evaluation = Evaluation(model, context)
        self._passes = None if self._now.is_alone else ForwardWatch(model, context.tracer)
        self._state = RunState(model, self._course, self._shared_parameters, self._evaluation)
        self._steps = AroundStep(
            self,
            self._course,
            guard=self._guard,
            evaluation=self._evaluation,
            buffers=self._buffers,
            passes=self._passes,
            pilot=pilot,
            keeping=keeping,
            carried=carried,
        )
        self._optimizers.listen(self._steps)
        _open_runs.add(self)
        if self._passes is None:
            if keeping is not None:
                keeping.recall(self)
            return
        self._watch_members(self._passes)
        if buffers == "every-step":
            self._buffers.follow(context.membership)
        try:
            if context.membership.is_elastic:
                load_finite_check()
                self._course.enter()
            else:
                self._build_first(pilot.instead if pilot is not None else None)
            self._course.watch_loads()
            if pilot is not None:
                pilot.begin()
            if keeping is not None:
                keeping.recall(self)
        except BaseException:
            self.close()
            raise

    def _build_first(self, instead: Plan | None) -> None:
        """Builds the engine of the first steps; of another plan, if there is one and the first is refused."""
        try:
            self._now.begin(self.plan)
        except AttachError as refusal:
            if instead is None:
                raise
            log.info("the first steps train under %s: %s", instead, refusal)
            self._course.adopt(instead)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not isinstance(error, PeerError):
                self.transport.fail(error)  # before channels close, so that others learn why they do
            if kind is None and not self._course.has_left:
                self.finish()
        finally:
            self.close()

    @property
    def plan(self) -> Plan:
        """In force at present."""
        return self._now.plan

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""
        return self._now.step

    @property
    def transport(self) -> Transport:
        """Between this worker and the others."""
        return self._context.transport.inner

    @property
    def lost_rounds(self) -> int:
        """Rounds that were dropped on all workers because they lost one; see `init(elastic=True)`."""
        return self._context.membership.lost_rounds

    @property
    def is_closed(self) -> bool:
        """Whether it is over, and whoever trains on does so alone."""
        return self._closed

    @property
    def is_server(self) -> bool:
        """Whether this rank is a dedicated server under the plan (`ps:servers=1`): it serves until `finish` returns.

        with tw.attach(model, optimizer, "asp/ps:servers=1") as run:
            if not run.is_server:
                train()  # the loop as ever
        """
        return self._engine.is_server

    @property
    def is_settled(self) -> bool:
        """Whether what the plan leaves open is chosen: always, but for plan or schedule `auto`, after a while."""
        return self._pilot is None or self._pilot.choice is not None

    def adopt(self, plan: Plan) -> None:
        """Goes on under another plan, between two steps.

        What stages remember is kept where it means the same under both plans, as after a change of the ratio alone;
        where not, it is dropped, with a warning, and rounds are counted from 1 again. A rank that is finished goes on
        under that plan too, and counts steps of phases as those do that trained meanwhile.

        Contract: every rank that trains, at the same step, with the same plan; blocks.

        Raises:
            AttachError: a plan that cannot keep buffers equal as this run is to.
        """
        self._require_open()
        self._require_servable(plan)
        self._course.begin_training()
        self._course.adopt(plan)

    def ask(self, answer: str) -> list[str | None]:
        """Returns what every rank answers; None of those that are finished. Every rank that trains; blocks."""
        told = self._course.meet(News(why="ask", answer=answer))
        return [news.answer if news.why == "ask" else None for news in told.news]

    def snapshot(self, *, remembering: bool = False) -> Snapshot:
        """Copies parameters, buffers and optimizer state as they are now, to be gone back to.

        Args:
            remembering: whether to copy what the plan's stages remember too: every rank then, and it may block.
        """
        engine = self._engine.state_dict() if remembering else None
        return Snapshot(self._model, self._optimizers, engine, is_equal=self._engine.keeps_replicas_equal)

    def go_back(self, snapshot: Snapshot, plan: Plan, *, remembering: bool = False) -> None:
        """Restores a snapshot to the bit, and goes on from it under a plan; steps are counted on.

        Learning rates stay as they are now, and random generators are not touched.

        Args:
            snapshot: that this rank made, under any plan.
            plan: may be another one.
            remembering: whether stages take up what they remembered then, under the same plan; else they begin anew.

        Contract: every rank that trains, at the same step; blocks.
        """
        self._require_open()
        self._require_servable(plan)
        self._course.go_back(snapshot, plan, remembering=remembering)

    @property
    def course(self) -> Course:
        """What this run goes through between steps."""
        return self._course

    @property
    def times(self) -> RoundTimes:
        """For how long rounds kept the line, where buckets are averaged, on this rank."""
        return self._context.times

    @property
    def forwards(self) -> int:
        """Forward passes seen on this rank."""
        return self._passes.count if self._passes is not None else 0

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Inside, backward passes add to `p.grad` locally; the first pass after averages all of it (`no_sync`)."""
        self._now.accumulate(True)
        self._steps.accumulated_at = self._engine.rounds
        try:
            yield
        finally:
            self._now.accumulate(False)

    def skip(self) -> None:
        """Takes the place of a backward pass that this worker leaves out; the others' mean does without it.

            loss = loss_fn(model(x), y)
            if loss.isfinite():
                loss.backward()
            else:
                run.skip()
            optimizer.step()  # on every rank

        Contract: this rank alone, or several; blocks as `backward()` does, under plans that average gradients.
        """
        self._require_open()
        if self._passes is not None:
            self._passes.forgive()
        self._engine.skip()

    def weigh(self, weight: float) -> None:
        """Tells this worker's weight in the next mean: its tokens or samples, for a mean over all of them.

            run.weigh(mask.sum())  # before backward(), on every rank
            cross_entropy(logits, targets).backward()  # the mean over this worker's tokens

        Σ wᵢ·gᵢ / Σ wᵢ, exact up to rounding where compression is lossless. A worker that tells nothing counts as the
        others do on average. No message: weights travel with what ranks tell each other in every round. Under local
        methods the weights of a round's steps are added up.

        Raises:
            AttachError: a weight below 0 or not finite, or a plan whose means are not weighted.
        """
        weight = float(weight)
        if not 0 <= weight < float("inf"):
            raise AttachError(
                f"a worker was to count {weight} times; give a weight of 0 or more, such as its tokens."
            )
        unweighed = [] if self._now.is_alone else [part for part in self.plan.compression if not part.weighs]
        if unweighed:
            raise AttachError(
                f"under {self.plan} every worker counts alike: {unweighed[0]} gives a direction or a middle, which "
                "does not follow weights. Leave out run.weigh(), or choose a compression that averages."
            )
        self._engine.weigh(weight)

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
        self._course.begin_training()
        self._optimizers.end_step()
        if self._steps.accumulated_at == self._engine.rounds and any(
            p.grad is not None for p in self._shared_parameters().values()
        ):
            warnings.warn(
                f"gradients that were accumulated after step {self.step} are dropped: no step was made with them. End "
                "with a step, or leave out the last incomplete one.",
                stacklevel=2,
            )
        self._steps.accumulated_at = -1
        if self._passes is not None and self.step == 0 and self._passes.saw_changes == 1:
            warnings.warn(STEP_NEVER_SEEN, stacklevel=2)
        self._course.finish()
        if isinstance(self._pilot, Pilot) and not self._now.behind:  # else others may have raced on
            self._pilot.finish(self)

    def leave(self) -> None:
        """Leaves for good after the next round of a local method; the run is closed then, and the others go on.

        What this worker did since the last round still counts. The others go on with the mean of those who stay, and
        say so in the log. A worker that is killed cannot be replaced so: the others end with an error that names it.

        Contract: one or more ranks, between two steps, while the others train; blocks until their next round.

        Raises:
            AttachError: another kind of plan, whose ranks cannot do without each other.
        """
        self._require_open()
        self._course.begin_training()
        self._course.leave()
        self.close()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is the one to be evaluated, equal on all ranks; training goes on afterwards as it was.

        That is the mean of the workers' parameters, or the outer model or the centre where the policy has one, with
        the mean of the workers' buffers (statistics of BatchNorm). What is in flight lands first.

        Where members are elastic and change in the midst of it, and until their first round after that, all evaluate
        what they have in common without another message: the outcome of the last round, with their own buffers.

        Contract: every rank, at the same step; blocks.

        Raises:
            AttachError: the optimizer steps inside, which would be undone.
        """
        self._require_open()
        self._course.begin_training()
        lent: list[Mapping[str, Tensor]] = []

        def agree() -> None:
            if not self._engine.assemble():
                return
            agreed = self._engine.consensus()
            buffers = self._shared_buffers() if self._engine.flush_is_collective else {}
            lent.append(self._evaluation.agree(agreed, buffers))

        membership, at = self._context.membership, self._now.most_steps
        if self._course.come_together(at):
            with membership.coming(at):
                membership.guard(agree)
        with self._evaluation.lending(lent[0] if lent else self._engine.common()):
            yield

    def report_loss(self, loss: float | Tensor) -> None:
        """Tells the loss of the step under way, before `optimizer.step()`.

        A race judges plans by it, `auto` watches over lossy plans by it, and AdaComm follows it.
        """
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        self._engine.observe(loss=value)
        if self._pilot is not None:
            self._pilot.hear(value)

    def report_samples(self, samples: float) -> None:
        """Tells on how many samples the step under way is made, to policies that weigh workers by them (FedAvg)."""
        self._engine.observe(samples=float(samples))

    def log_to(self, writer: Writer) -> None:
        """Writes rounds, bytes, step time, waiting and staleness of every step to a TensorBoard `SummaryWriter`."""
        self._steps.writer = writer

    def close(self) -> None:
        """Takes out every hook and ends the communication thread; the model and the optimizer stay usable. Local."""
        if self._closed:
            return
        self._closed = True
        _open_runs.discard(self)
        if self._pilot is not None:
            self._pilot.close()
        self._optimizers.close()
        if self._passes is not None:
            self._passes.close()
        self._course.close()
        self._engine.close()
        if self._keeping is not None:
            self._keeping.close()
        self._evaluation.close()
        self._guard.release()

    def state_dict(self, *, gather: bool = False) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint, to be saved beside the model's and the optimizer's.

        What is under way arrives first, is part of the checkpoint, and lands once, whether training goes on or is
        resumed. Everything by parameter name; tensors are copies, in host memory. Loading it and continuing equals
        continuing.

            state = run.state_dict(gather=True)  # on every rank
            if state:  # on rank 0
                torch.save([model.state_dict(), optimizer.state_dict(), state], "checkpoint.pt")

        Args:
            gather: have rank 0 return the parts of all, to be saved in one file that any number of workers loads; the
                others return nothing. It then holds parameters and optimizer states too where replicas differ, and
                buffers and what is left to each rank in any case.

        Contract: every rank, at the same step; local, but under servers, in rounds with a quorum, which stop until all
        have come, and with `gather`, which sends every rank's part to rank 0, and needs memory for all of them there.
        Where it loses a member of an elastic job it begins again, and one of those who are left is given the parts.

        Raises:
            AttachError: `gather` under a plan with dedicated servers, which are not there to answer.
        """
        if not gather:
            return self._state.part()
        self._require_open()
        self._course.begin_training()
        return self._state.gathered()

    def own_state(self) -> dict[str, Any]:
        """Returns what `state_dict(gather=True)` has of this rank, for a file of its own.

        That is `state_dict()`, and whatever of the model and the optimizers differs from rank 0's, which it saves for
        all. On as many workers each rank loads its own file, on another number those of all, by rank:

            run.load_state_dict({"parts": {rank: torch.load(f"part_{rank}.pt") for rank in range(workers)}})

        Tensors may be the model's own: save them before training goes on.

        Contract: every rank, at the same step; local, but where `state_dict` is not.
        """
        self._require_open()
        return self._state.own()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` returned on this rank, or gathered from all. Every rank; blocks.

        Load the model's and the optimizer's state after attaching too, and before this: attaching makes parameters
        rank 0's. The rest of the plan may have changed since if its stages remember the same. What is under way is
        dropped.

        On another number of workers, from what was gathered: replicas that differed begin from their mean, momenta and
        leftovers are the mean of the old ones, so that what the mean is still owed stays owed, and outer steps go on;
        what belongs to one rank is that of old rank `rank % workers`. From one rank's part only the counters of steps
        and rounds are kept: leftovers and momenta are dropped, with a warning, and all begin from the parameters that
        rank 0 has now.

        Raises:
            AttachError: a checkpoint of another sync, rank or model, or of stages that remember something else.
            MismatchError: on every rank alike, parts of different checkpoints: of other steps, or numbers of workers.
        """
        self._require_open()
        self._state.load(state)
        self._course.begin_training(is_told=True)

    def report(self) -> Report:
        """Returns what happened so far on this worker. Local."""
        choice = self._pilot.choice if self._pilot else None
        record = self._now.record
        counts = record.counts(self._engine)
        memory = self._context.memory_added
        return Report(
            plan=str(self._now.asked),
            workers=self._context.transport.size,
            steps=record.steps,
            rounds=counts.rounds,
            skipped=counts.skipped,
            late=counts.late,
            planned_bytes=counts.planned_bytes
            - self._context.spared.num_bytes
            + self._evaluation.planned_bytes,
            sent_bytes=self._context.transport.bytes_sent,
            buffer_bytes=self._buffers.transport.bytes_sent,
            step_s=typical_step_s(list(record.steps_s), self.plan.sync.steps_per_round),
            exposed_s=typical_step_s(list(record.exposed_s), self.plan.sync.steps_per_round) or 0.0,
            predicted_step_s=choice.predicted_step_s if choice else self._predicted.get("step_s"),
            predicted=choice.predicted if choice else self._predicted,
            baseline_step_s=self._pilot.baseline_step_s if self._pilot else None,
            why=(*(choice.why if choice else self._why), *(self._pilot.remarks if self._pilot else ())),
            considered=choice.considered if choice else (),
            contenders=choice.contenders if choice else (),
            waited_s=record.waited_s,
            waited_s_by_worker=record.waited_s_by_worker,
            device_bytes=memory.allocated_bytes,
            pinned_bytes=memory.pinned_bytes,
            staleness=counts.staleness,
            switch=self._context.what_the_switch_did,
        )

    def trace(self, path: str | pathlib.Path) -> None:
        """Writes what this worker did when, for Perfetto (ui.perfetto.dev) or chrome://tracing. Local."""
        self._context.tracer.write(path, self._context.transport.rank)

    @property
    def _engine(self) -> Engine:
        return self._now.engine

    @property
    def _context(self) -> RunContext:
        return self._now.context

    def _move(self, context: RunContext) -> None:
        """Goes on among other members."""
        self._evaluation.move(context)
        self._buffers.move(context.transport.inner)

    def _watch_members(self, passes: ForwardWatch) -> None:
        """Has the membership know what must be equal."""
        membership = self._context.membership
        comparison = Comparison(self._now, passes, self._shared_parameters)
        membership.standing = comparison.standing
        membership.describe = comparison.describe
        passes.on_backward = lambda: self._engine.begin_backward()
        passes.pauses = lambda: self._evaluation.is_lent

    def _shared_parameters(self) -> dict[str, Parameter]:
        """Returns what is kept in step, by name."""
        named = self._model.named_parameters()
        return {name: p for name, p in named if p.requires_grad and name not in self._left}

    def _shared_buffers(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._model.named_buffers() if name not in self._left}

    def _require_servable(self, plan: Plan) -> None:
        """Makes sure that these workers can carry out another plan than they began with, as `attach` does."""
        context = self._context
        num_ranks = None if context.membership.is_elastic else context.transport.size
        require_servable(plan, num_ranks, self._kept_equal)

    def _require_open(self) -> None:
        if self._closed:
            raise AttachError("this run is closed; attach again to go on training in step.")


@atexit.register
def _close_open_runs() -> None:
    """Ends threads before the interpreter does: one that is in Gloo then would abort the process."""
    for run in list(_open_runs):
        with contextlib.suppress(Exception):
            run.close()
