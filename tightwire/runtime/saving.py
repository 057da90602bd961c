"""What a run is saved as, and goes on from: this rank's part, or the parts of all in one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter

from tightwire.architecture import ParameterServer
from tightwire.errors import AttachError, MismatchError
from tightwire.plan import Phases
from tightwire.runtime import checkpoint
from tightwire.runtime.agreement import copy_from_first
from tightwire.runtime.course import Course
from tightwire.runtime.engines import Engine
from tightwire.sync import Sync
from tightwire.transport.blame import name_ranks

VERSION = 1


class RunState:
    """Saves and loads what a run remembers; see `Run.state_dict` and `Run.load_state_dict`."""

    def __init__(self, model: nn.Module, course: Course, shared: Callable[[], dict[str, Parameter]]) -> None:
        """Saves a run.

        Args:
            model: the user's.
            course: what happens between its steps.
            shared: returns what is kept in step, by name.
        """
        self._model, self._course, self._shared = model, course, shared

    def part(self) -> dict[str, Any]:
        """Returns this rank's part. Every rank; local under most plans."""
        context = self._course.now.context
        return {
            "version": VERSION,
            "plan": str(self._course.now.asked),
            "rank": context.transport.rank,
            "workers": context.transport.size,
            "step": self._course.now.step,
            "observed": context.observed.state(),
            "usual_weight": context.membership.usual_weight,
            "engine": checkpoint.on_host(self._engine_state()),
        }

    def gathered(self) -> dict[str, Any]:
        """Returns the parts of all on rank 0, and nothing on the others. Every rank; blocks.

        Raises:
            AttachError: a plan with dedicated servers, which are not there to answer.
        """
        context = self._course.now.context
        if self._has_servers_apart:
            raise AttachError(
                f"{self._course.now.plan} has servers that do not train, and nobody would answer for them; let every "
                "worker save its own run.state_dict(), or attach with servers that train too (ps:shards=2)."
            )
        part = {"run": self.part()}
        agrees = self._engine.keeps_replicas_equal or not self._engine.flush_is_collective
        part |= checkpoint.own_tensors(self._model, context.optimizers, agrees=agrees, left=context.left)
        parts = checkpoint.gather(context.transport.inner, part)
        return {"version": VERSION, "parts": parts} if parts else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a part, or from the parts of all. Every rank; blocks.

        Raises:
            AttachError: a checkpoint of another sync, rank or model, or of stages that remember something else.
            MismatchError: on every rank alike, parts of different checkpoints.
        """
        transport = self._course.now.context.transport
        if parts := state.get("parts"):
            self._load_gathered(parts)
            return
        self._require_same_sync(state)
        self._require_one_checkpoint(state["workers"])
        self._take_weight(state)
        self._course.go_to(state["step"])
        if state["workers"] != transport.size:
            warnings.warn(
                f"the checkpoint was made by {state['workers']} workers, this run has {transport.size}: leftovers "
                "and momenta are dropped, and what they held of old gradients is lost; run.state_dict(gather=True) "
                "keeps them.",
                stacklevel=3,
            )
            copy_from_first(transport.inner, self._shared().values())
            self._engine.resume_at(state["engine"].get("rounds", 0))
            return
        if state["rank"] != transport.rank:
            raise AttachError(
                f"this is rank {state['rank']}'s checkpoint, loaded by rank {transport.rank}; every rank saves and "
                "loads its own, or run.state_dict(gather=True)."
            )
        if self._course.now.context.observed.take(state.get("observed")):
            self._course.go_to(state["step"], anew=True)
        self._engine.load_state_dict(state["engine"])

    def _load_gathered(self, parts: Sequence[Mapping[str, Any]]) -> None:
        context = self._course.now.context
        rank, size = context.transport.rank, context.transport.size
        self._require_same_sync(parts[0]["run"])
        checkpoint.put_back(self._model, context.optimizers, parts, rank=rank, size=size, left=context.left)
        if len(parts) == size:
            self.load(parts[rank]["run"])
            return
        self._take_weight(parts[0]["run"])
        self._course.go_to(parts[0]["run"]["step"])
        copy_from_first(context.transport.inner, self._shared().values())
        if len(parts) == 1:  # a world of one, where no engine remembered anything
            self._engine.resume_at(0)
        else:
            self._engine.load_merged([part["run"]["engine"] for part in parts])

    @property
    def _has_servers_apart(self) -> bool:
        """Whether some ranks only serve, and neither save nor load."""
        architecture = self._course.now.plan.architecture
        return isinstance(architecture, ParameterServer) and bool(architecture.servers)

    def _require_one_checkpoint(self, workers: int) -> None:
        """Makes sure that all ranks load what as many workers saved.

        Not where some ranks load nothing, nor after the first step: others may still need this rank for a round then.
        """
        context = self._course.now.context
        if context.membership.is_elastic or self._has_servers_apart or self._course.now.step > 0:
            return
        told = [int(other) for other in context.transport.inner.exchange(str(workers).encode())]
        if len(set(told)) > 1:
            who = {count: [rank for rank, other in enumerate(told) if other == count] for count in told}
            parts = "; ".join(f"{name_ranks(ranks)} that of {count} workers" for count, ranks in who.items())
            raise MismatchError(
                f"ranks load parts of different checkpoints: {parts}. Save every checkpoint to a folder of its own, "
                "and have all ranks load from one."
            )

    def _take_weight(self, state: Mapping[str, Any]) -> None:
        self._course.now.context.membership.usual_weight = state.get("usual_weight", 1.0)

    @property
    def _engine(self) -> Engine:
        return self._course.now.engine

    def _engine_state(self) -> dict[str, Any]:
        kept: list[dict[str, Any]] = []
        while not kept:  # again, where what was under way lost a member
            self._course.now.context.membership.guard(lambda: kept.append(self._engine.state_dict()))
        return kept[0]

    def _require_same_sync(self, state: Mapping[str, Any]) -> None:
        asked = self._course.now.asked
        if state.get("version") != VERSION or _syncs(Phases.parse(state["plan"])) != _syncs(asked):
            raise AttachError(
                f"this checkpoint was made under the plan {state.get('plan')} (version {state.get('version')}), this "
                f"run's is {asked} (version {VERSION}); attach with the plan of the checkpoint, or one of the same "
                "sync. For another load the model and the optimizer alone: what the old one remembered is given up."
            )


def _syncs(phases: Phases) -> list[Sync]:
    return [plan.sync for plan in phases.plans]
