"""What a run is saved as, and goes on from: this rank's part, or the parts of all in one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import Parameter

from tightwire.architecture import ParameterServer
from tightwire.errors import AttachError
from tightwire.plan import Phases
from tightwire.runtime import checkpoint
from tightwire.runtime.agreement import copy_from_first
from tightwire.runtime.course import Course
from tightwire.runtime.engines import Engine
from tightwire.runtime.engines.memory import UnfittingMemoryError
from tightwire.runtime.evaluation import Evaluation
from tightwire.sync import Sync
from tightwire.transport.blame import name_ranks

VERSION = 1
RUN_KEYS = frozenset({"rank", "workers", "step", "plan", "engine"})


class RunState:
    """Saves and loads what a run remembers; see `Run.state_dict`, `Run.own_state` and `Run.load_state_dict`.

    What is saved while the model is lent others for an evaluation, as trainers save after a validation, is the worker's
    own: training goes on from that.
    """

    def __init__(
        self,
        model: nn.Module,
        course: Course,
        shared: Callable[[], dict[str, Parameter]],
        evaluation: Evaluation,
    ) -> None:
        """Saves a run.

        Args:
            model: the user's.
            course: what happens between its steps.
            shared: returns what is kept in step, by name.
            evaluation: may have lent the model others.
        """
        self._model, self._course, self._shared, self._evaluation = model, course, shared, evaluation
        self._parts: list[dict[str, Any]] = []
        course.now.context.membership.gather = self._gather

    def part(self) -> dict[str, Any]:
        """Returns what this rank's run remembers. Every rank; local under most plans."""
        with self._evaluation.given_back():
            return self._part(self._engine_state())

    def _part(self, engine: Mapping[str, Any]) -> dict[str, Any]:
        context, now = self._course.now.context, self._course.now
        return {
            "version": VERSION,
            "plan": str(now.asked),
            "rank": context.transport.rank,
            "workers": context.transport.size,
            "step": now.step,
            "lead": now.lead,
            "behind": now.behind,
            "observed": context.observed.state(),
            "usual_weight": context.membership.usual_weight,
            "engine": checkpoint.on_host(engine),
        }

    def own(self) -> dict[str, Any]:
        """Returns all that is this rank's own: `part` as "run", and tensors. Every rank; local under most plans."""
        with self._evaluation.given_back() as was_lent:
            own = self._own(self.part())
            if was_lent:  # tensors are the model's, which is lent others again
                own["model"] = {name: tensor.clone() for name, tensor in own["model"].items()}
            return own

    def _own(self, run: Mapping[str, Any]) -> dict[str, Any]:
        context = self._course.now.context
        agrees = self._engine.keeps_replicas_equal or not self._engine.flush_is_collective
        own = checkpoint.own_tensors(self._model, context.optimizers, agrees=agrees, left=context.left)
        return {"run": run, **checkpoint.on_host(own)}

    def gathered(self) -> dict[str, Any]:
        """Returns the parts of all on rank 0, and nothing on the others. Every rank; blocks.

        Where it loses a member, those who are left do it again, with those who come in its place. All know alike
        whether to: it is over once one has heard that all have done their part. A newcomer whose loop comes to it when
        it is over leaves it out.

        Raises:
            AttachError: a plan with dedicated servers, which are not there to answer.
        """
        if self._has_servers_apart:
            raise AttachError(
                f"{self._course.now.plan} has servers that do not train, and nobody would answer for them; let every "
                "worker save its own run.state_dict(), or attach with servers that train too (ps:shards=2)."
            )
        membership, at = self._course.now.context.membership, self._course.now.most_steps
        if membership.checkpoints.leaves_out(at):
            return {}
        membership.gathers_at, self._parts = at, []
        try:
            with self._evaluation.given_back():
                membership.guard(self._gather)
            return {"version": VERSION, "parts": self._parts} if self._parts else {}
        finally:
            membership.gathers_at, self._parts = None, []

    def _gather(self) -> None:
        """Brings the parts of all to one rank. Every member; blocks."""
        membership, transport = self._course.now.context.membership, self._course.now.context.transport.inner
        assert membership.gathers_at is not None
        with membership.coming(membership.gathers_at):
            own = self._own(self._part(self._engine.state_dict()))
        self._parts = checkpoint.gather(transport, own, to=membership.gathers_to)
        if membership.is_elastic:
            transport.exchange(b"")
        membership.checkpoints.note(membership.gathers_at)
        membership.gathers_at, membership.gathers_to = None, 0

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from parts: this rank's, or those of all ranks that saved. Every rank; blocks.

        Raises:
            AttachError: a checkpoint of another sync, rank or model, or of stages that remember something else.
            MismatchError: on every rank alike, parts of different checkpoints.
        """
        transport = self._course.now.context.transport
        parts = _by_rank(state)
        some = parts.get(transport.rank) or next(iter(parts.values()))
        self._require_same_sync(some["run"])
        workers = some["run"]["workers"]
        if workers == transport.size:
            self._require_one_checkpoint(f"one of {self._save(some)}")
            with self._naming_plans(some["run"]):
                self._load_own(some)
        elif all(rank in parts for rank in range(workers)):
            self._require_one_save(parts)
            self._require_one_checkpoint(f"all of {self._save(some)}")
            with self._naming_plans(some["run"]):
                self._load_others([parts[rank] for rank in range(workers)])
        else:
            self._require_one_checkpoint(f"one of {self._save(some)}")
            warnings.warn(
                f"the checkpoint was made by {workers} workers, this run has {transport.size}, and only the part of "
                f"{name_ranks(parts)} was loaded: leftovers and momenta are dropped, and what they held of old "
                "gradients is lost. The parts of all keep them: run.state_dict(gather=True) has them in one file, a "
                "trainer's folder in tightwire_RANK.pt, of which none may be missing then.",
                stacklevel=3,
            )
            self._count_on_from(some["run"])

    @contextmanager
    def _naming_plans(self, run: Mapping[str, Any]) -> Iterator[None]:
        """Says of memory that does not fit under which plan it was saved."""
        try:
            yield
        except UnfittingMemoryError as error:
            raise UnfittingMemoryError(
                f"{error} It was saved under {run['plan']}; this run's plan is {self._course.now.asked}. attach(..., "
                f"plan={run['plan']!r}) goes on from it, also where plan auto had chosen that."
            ) from error

    def _load_own(self, part: Mapping[str, Any]) -> None:
        run, now = part["run"], self._course.now
        if run["rank"] != now.context.transport.rank:
            raise AttachError(
                f"this is rank {run['rank']}'s checkpoint, loaded by rank {now.context.transport.rank}; every rank "
                "saves and loads its own, or run.state_dict(gather=True)."
            )
        checkpoint.put_back(self._model, now.context.optimizers, part)
        self._take_weight(run)
        now.behind = run.get("behind", 0)
        self._course.go_to(run["step"])
        now.lead = run.get("lead", 0)
        if now.context.observed.take(run.get("observed")):
            self._course.go_to(run["step"], anew=True)
        self._engine.load_state_dict(run["engine"])

    def _load_others(self, parts: list[Mapping[str, Any]]) -> None:
        """Goes on from what another number of ranks saved."""
        context = self._course.now.context
        part = checkpoint.blended(parts, context.transport.rank, context.left)
        checkpoint.put_back(self._model, context.optimizers, part)
        if len(parts) == 1:  # a world of one, where no engine remembered anything
            self._count_on_from(parts[0]["run"])
        else:
            self._begin_at(parts[0]["run"])
            self._engine.load_merged([other["run"]["engine"] for other in parts])

    def _count_on_from(self, run: Mapping[str, Any]) -> None:
        """Takes up the counters alone."""
        self._begin_at(run)
        self._engine.resume_at(run["engine"].get("rounds", 0))

    def _begin_at(self, run: Mapping[str, Any]) -> None:
        """Counts on from a step, from rank 0's parameters."""
        self._take_weight(run)
        self._course.now.behind = run.get("behind", 0)
        self._course.go_to(run["step"])
        copy_from_first(self._course.now.context.transport.inner, self._shared().values())

    @property
    def _has_servers_apart(self) -> bool:
        """Whether some ranks only serve, and neither save nor load."""
        architecture = self._course.now.plan.architecture
        return isinstance(architecture, ParameterServer) and bool(architecture.servers)

    def _save(self, part: Mapping[str, Any]) -> str:
        """Returns in words when a part was saved; alike for all that were saved together."""
        run = part["run"]
        if not self._engine.flush_is_collective:  # workers are at steps of their own
            return f"{run['workers']} workers"
        return f"{run['workers']} workers after step {run['step'] - run.get('lead', 0)}"

    def _require_one_save(self, parts: Mapping[int, Mapping[str, Any]]) -> None:
        """Makes sure that parts were saved together."""
        checkpoint.require_alike(
            "parts are", {rank: f"of {self._save(part)}" for rank, part in parts.items()}
        )

    def _require_one_checkpoint(self, what: str) -> None:
        """Makes sure that all ranks load the same.

        Not where some ranks load nothing, nor after the first step: others may still need this rank for a round then.

        Args:
            what: this rank loads.
        """
        context = self._course.now.context
        if context.membership.is_elastic or self._has_servers_apart or self._course.now.step > 0:
            return
        told = context.transport.inner.exchange(what.encode())
        checkpoint.require_alike(
            "ranks load parts", {rank: other.decode() for rank, other in enumerate(told)}
        )

    def _take_weight(self, run: Mapping[str, Any]) -> None:
        self._course.now.context.membership.usual_weight = run.get("usual_weight", 1.0)

    @property
    def _engine(self) -> Engine:
        return self._course.now.engine

    def _engine_state(self) -> dict[str, Any]:
        kept: list[dict[str, Any]] = []
        now = self._course.now
        with now.context.membership.coming(now.most_steps):
            while not kept:  # again, where what was under way lost a member
                now.context.membership.guard(lambda: kept.append(self._engine.state_dict()))
        return kept[0]

    def _require_same_sync(self, run: Mapping[str, Any]) -> None:
        asked = self._course.now.asked
        if run.get("version") != VERSION or _syncs(Phases.parse(run["plan"])) != _syncs(asked):
            raise AttachError(
                f"this checkpoint was made under the plan {run.get('plan')} (version {run.get('version')}), this "
                f"run's is {asked} (version {VERSION}); attach with the plan of the checkpoint, or one of the same "
                "sync. For another load the model and the optimizer alone: what the old one remembered is given up."
            )


def _by_rank(state: Any) -> Mapping[int, Mapping[str, Any]]:
    """Returns the parts of a checkpoint in any of its forms.

    Raises:
        AttachError: it is no checkpoint of a run.
    """
    parts: Any = None
    if isinstance(state, Mapping):
        parts = state.get("parts") or {state.get("rank", 0): {"run": state}}
        parts = parts if isinstance(parts, Mapping) else dict(enumerate(parts))
    if parts is None or not all(map(_is_part, parts.values())):
        held = f" of {', '.join(map(str, state)) or 'nothing'}" if isinstance(state, Mapping) else ""
        raise AttachError(
            f"asked to go on from a {type(state).__name__}{held}, which is no state of a run: give what "
            "run.state_dict() returned. What the Lightning strategy kept before version 0.2, a list, cannot be read "
            "any more: go on from the model and the optimizers, without the checkpoint's key 'tightwire'."
        )
    return parts  # type: ignore[no-any-return]


def _is_part(part: Any) -> bool:
    run = part.get("run") if isinstance(part, Mapping) else None
    return isinstance(run, Mapping) and run.keys() >= RUN_KEYS


def _syncs(phases: Phases) -> list[Sync]:
    return [plan.sync for plan in phases.plans]
