"""Hierarchical local SGD: agree often inside a node, seldom across nodes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.sync.rounds import Rounds, State, require_state, require_steps


@dataclass(frozen=True)
class HierarchicalLocal(Rounds):
    """Average inside the node every H1 steps, over all workers every H2 (Lin et al., Algorithm 3).

    H1 = H2 is local:H2. The paper counts H2 in blocks of H1 steps, as H^b; here both are steps.

    Args:
        H1: steps between averages inside a node.
        H2: steps between averages over all; a multiple of H1.
        node: consecutive ranks that are a node; 0: as many as the launcher says (LOCAL_WORLD_SIZE).
        state: of the optimizer, in rounds over all; as in `local`.
    """

    name: ClassVar[str] = "hierarchical-local"
    title: ClassVar[str] = "average inside the node every H1 steps, across nodes every H2"
    paper: ClassVar[str] = "Lin et al., Don't Use Large Mini-Batches, Use Local SGD, arXiv:1808.07217"
    promise: ClassVar[str] = (
        "Between local and bsp in loss, at most of local's saving between nodes (Lin et al. 2020)."
    )
    seen: ClassVar[str] = "Seen."
    example: ClassVar[str] = "hierarchical-local:2,8"

    H1: int
    H2: int
    _: KW_ONLY
    node: int = 0
    state: str = "kept"

    def __post_init__(self) -> None:
        require_steps(self, "H1", self.H1)
        require_steps(self, "H2", self.H2)
        require_state(self, self.state)
        if self.H2 % self.H1:
            raise PlanError(
                f"{self}: H2 must be a multiple of H1, so that rounds over all end rounds inside."
            )
        if self.node < 0:
            raise PlanError(f"{self}: node={self.node} is no number of ranks; 0 asks the launcher.")

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H2

    @property
    def steps_inside(self) -> int:  # noqa: D102
        return self.H1

    @property
    def workers_inside(self) -> int:  # noqa: D102
        return self.node

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)
