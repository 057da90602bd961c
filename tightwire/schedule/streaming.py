"""Streaming: fragments of the model agree in turn, while training goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tightwire.answers import Answers, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.schedule.scheduler import Partition, Schedule, TensorFacts, Wire, fuse
from tightwire.sync import Rounds


@dataclass(frozen=True)
class Streaming(Schedule):
    """Fragments of about equal size agree every H steps each, H/fragments steps apart (streaming DiLoCo).

    An exchange travels during `overlap` steps; then x ← alpha · x + (1 − alpha) · x_start, where x_start is the outer
    model of that fragment (Douillard et al. 2025, Algorithm 2; the paper's α and τ). The peak of what is sent per step
    is that of one fragment. Fragments are runs of neighbouring tensors.

    Args:
        fragments: how many; at most H, and at most the model's tensors.
        overlap: steps made while an exchange travels; 0: all wait, and nothing is blended.
        alpha: share of the worker's own parameters that it keeps when an exchange lands.
    """

    name: ClassVar[str] = "streaming"
    title: ClassVar[str] = "fragments of the model agree in turn, while training goes on"
    paper: ClassVar[str] = "Douillard et al., Streaming DiLoCo, arXiv:2501.18512"
    promise: ClassVar[str] = (
        "DiLoCo's loss at a peak of the line that is fragments times lower (Douillard et al. 2025)."
    )
    seen: ClassVar[str] = "Seen: with four fragments no worse than DiLoCo."
    example: ClassVar[str] = "streaming:2"

    fragments: int = 4
    overlap: int = 1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.fragments < 1 or self.overlap < 0 or not 0 <= self.alpha < 1:
            raise PlanError(
                f"{self} cannot be: at least 1 fragment, an overlap of at least 0 steps, and alpha from 0 to below "
                "1, as in streaming:4,overlap=1,alpha=0.5."
            )

    @property
    def num_fragments(self) -> int:  # noqa: D102
        return self.fragments

    @property
    def steps_behind(self) -> int:  # noqa: D102
        return self.overlap

    def split(self, tensors: Sequence[TensorFacts]) -> Partition:
        """Cuts tensors into runs of about equal size, one per fragment.

        Raises:
            PlanError: fewer tensors than fragments.

        >>> Streaming(2).split([TensorFacts(num_bytes=n) for n in (4, 4, 8)])
        ((0, 1), (2,))
        """
        if len(tensors) < self.fragments:
            raise PlanError(
                f"{self} cuts the model into {self.fragments} fragments, and it has {len(tensors)} tensors; write "
                f"streaming:{max(len(tensors), 1)}."
            )
        total = sum(tensor.num_bytes for tensor in tensors)
        runs: list[list[int]] = [[]]
        passed = 0
        for position, tensor in enumerate(tensors):
            left, runs_left = len(tensors) - position, self.fragments - len(runs)
            # The middle of a tensor decides on which side of a cut it is.
            is_over = (passed + tensor.num_bytes / 2) * self.fragments >= total * len(runs)
            if runs[-1] and runs_left and (is_over or left == runs_left):
                runs.append([])
            runs[-1].append(position)
            passed += tensor.num_bytes
        while len(runs) < self.fragments:  # all bytes came early: what is left over is empty tensors
            longest = max(range(len(runs)), key=lambda i: len(runs[i]))
            runs.insert(longest + 1, [runs[longest].pop()])
        return tuple(map(tuple, runs))

    def partition(self, tensors: Sequence[TensorFacts], wire: Wire | None = None) -> Partition:
        """Groups tensors by fragment, and within one by kind."""
        return tuple(
            tuple(run[p] for p in bucket)
            for run in self.split(tensors)
            for bucket in fuse([tensors[p] for p in run], math.inf)
        )

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a policy without rounds that fragments could have in turn, and one that says when they land."""
        sync = plan.sync
        if not (isinstance(sync, Rounds) and sync.by_fragment):
            return Refusal(
                reason=f"{self} lets fragments of the model agree in turn, and {sync} has no rounds to which that "
                "means anything.",
                nearest=(text_with(plan, sync="diloco:64"), text_with(plan, schedule="fusion")),
            )
        if sync.steps_late or sync.optimizer_state != "kept":
            return Refusal(
                reason=f"{sync} and {self} disagree: under streaming the schedule alone says when an exchange lands, "
                "and optimizer state is kept.",
                nearest=(text_with(plan, sync=f"{sync.name}:{sync.steps_per_round},state=kept"),
                         text_with(plan, sync=f"{sync.name}:{sync.steps_per_round}")),
            )  # fmt: skip
        if max(self.fragments, self.overlap) > sync.steps_per_round:
            return Refusal(
                reason=f"{self} cannot run within rounds of {sync.steps_per_round} steps: each fragment begins at a "
                "step of its own, and lands before it begins again.",
                nearest=(text_with(plan, schedule=f"streaming:{min(self.fragments, sync.steps_per_round)}"),),
            )
        return None
