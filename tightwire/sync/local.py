"""Local SGD: several steps alone, then agree on the mean of the parameters."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.answers import Answers, Rate, Refusal, text_with
from tightwire.errors import PlanError
from tightwire.sync.rounds import (
    NO_GRACE,
    USUAL,
    Quorum,
    Rounds,
    State,
    require_late,
    require_quorum,
    require_state,
    require_steps,
)
from tightwire.units import Seconds


@dataclass(frozen=True)
class Local(Rounds):
    """H local steps, then average the parameters.

    What travels is the pseudo-gradient x_start − x_end, so any codec serves; every worker then continues from
    x_start − mean (Stich, Algorithm 1, written as a difference).

    Under `state=momenta` it is the local steps of 0/1 Adam (Algorithm 1), for `tightwire.optim.OneBitAdam`, whose
    variance is frozen: what travels is u = Σ γₜ·mₜ, and x ← x_start − ū/(√v + ε), m ← ū/Σ γₜ. Whole, that method is

        bsp/allreduce/zero-one-adam@12500~local:16,doubling=2000,state=momenta/allreduce/doublesqueeze+ef

    With `momenta=3,variances=6` it is Desynced Low Communication (Des-LOC): of the optimizer's state first moments are
    averaged in every third round and second moments, which change slowest, in every sixth, at half the bytes of
    averaging all in every round (1/3 + 1/6 of the model more than local:H), and, the paper reports, with the loss of
    `state=averaged`, also where keeping momenta local diverges. From a summary of the paper, which clips gradients,
    too. On the study's text SGD's momenta, averaged in every third round of 8 steps, change nothing: a loss of 2.092,
    and 2.090 where they are kept (three seeds). Second moments were not studied.

    Args:
        H: local steps per round; 1 is bsp, up to rounding, for an optimizer that is linear in the gradient.
        overlap: steps made while the exchange travels; what they changed is added to the mean when it lands. H is
            CoCoD-SGD (Shen et al., arXiv:1906.12043, Algorithm 1): the mean comes one round late. It wants a smaller
            rate than rounds that wait: by how much replicas differ, d, is not taken away in a round but undone by the
            next local steps, d ← −(1 − ρ)·d, ρ being what H steps leave of a distance to rest; where momentum
            overshoots, ρ < 0, and the difference grows.
        state: what becomes of the optimizer's state in a round: each worker's own is `kept` (the default: both papers
            analyse SGD, which has none), `averaged` like the parameters, or `reset`; `momenta`: see above.
        doubling: rounds after which their length doubles, from 1 step up to H (T_u of 0/1 Adam, whose paper doubles
            when the learning rate has halved); 0: it is H from the start.
        momenta: rounds from one average of the optimizer's first moments to the next; 0: as `state` says.
        variances: the same of its second moments.
        quorum: share of the workers with which a round ends without the others; see `diloco`.
        grace: for how long it waits for them all the same.
    """

    name: ClassVar[str] = "local"
    title: ClassVar[str] = "H local steps, then average the parameters"
    paper: ClassVar[str] = (
        "Stich, Local SGD Converges Fast, arXiv:1805.09767; Yu et al., PR-SGD, arXiv:1807.06629; overlapped: "
        "Shen et al., CoCoD-SGD, arXiv:1906.12043; of momenta: Lu et al., 0/1 Adam, arXiv:2202.06009; with periods: "
        "Iacob et al. 2025, Des-LOC, arXiv:2505.22549"
    )
    promise: ClassVar[str] = (
        "SGD's rate with √T times fewer exchanges (Stich 2019); no loss where rounds are short."
    )
    seen: ClassVar[str] = "Not within 1 % here: in 800 steps drift does not average out."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT)) for H up to T^(1/4)/n^(3/4)",
        assumes="smooth non-convex loss, bounded variance, bounded gradients, like data; SGD",
        speed_up="linear: n, while H is not longer",
        paper="Yu et al. 2019, arXiv:1807.06629, corollary 1",
    )
    example: ClassVar[str] = "local:8"
    needs_agreement: ClassVar[bool] = False
    by_fragment: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    overlap: int = 0
    state: str = "kept"
    doubling: int = 0
    momenta: int = 0
    variances: int = 0
    quorum: float = 1.0
    grace: Seconds = NO_GRACE

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_late(self, self.overlap, self.H)
        require_state(self, self.state, self.overlap, (*USUAL, "momenta"))
        if self.doubling < 0 or (self.doubling and self.overlap):
            raise PlanError(
                f"{self}: rounds double after a number of them, 0 for never, and begin with a single step, behind "
                "which no exchange could travel; leave out doubling, or overlap."
            )

        if min(self.momenta, self.variances) < 0:
            raise PlanError(f"{self}: momenta and variances are numbers of rounds, 0 for never.")
        if self.has_periods and (self.state != "kept" or self.overlap):
            raise PlanError(
                f"{self}: periods of momenta and variances say what becomes of the optimizer's state, in rounds that "
                "all wait for; leave out state and overlap, or the periods."
            )
        object.__setattr__(self, "grace", Seconds(self.grace))
        is_plain = self.state == "kept" and not (self.overlap or self.doubling or self.has_periods)
        require_quorum(self, self.quorum_of, self.grace, is_plain)

    @property
    def quorum_of(self) -> Quorum | None:  # noqa: D102
        return Quorum(share=self.quorum, grace_s=self.grace) if self.quorum != 1 else None

    @property
    def has_periods(self) -> bool:
        """Whether parts of the optimizer's state are averaged, each with a period of its own."""
        return self.momenta > 0 or self.variances > 0

    @property
    def state_periods(self) -> tuple[int, int]:  # noqa: D102
        return (self.momenta, self.variances) if self.has_periods else super().state_periods

    @property
    def states_sent(self) -> float:  # noqa: D102
        return sum(1 / period for period in (self.momenta, self.variances) if period)

    @property
    def steps_per_round(self) -> int:
        """H: in the long run."""
        return self.H

    def steps_of(self, round_number: int) -> int:
        """Returns the length of a round.

        >>> [Local(8, doubling=2).steps_of(number) for number in range(1, 10)]
        [1, 1, 2, 2, 4, 4, 8, 8, 8]
        """
        if not self.doubling:
            return self.H
        doublings = min((round_number - 1) // self.doubling, self.H.bit_length())
        return min(self.H, 1 << doublings)

    @property
    def steps_late(self) -> int:  # noqa: D102
        return self.overlap

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        if self.has_periods:
            return "averaged"
        return require_state(self, self.state, known=(*USUAL, "momenta"))

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses rounds that grow where they have one length, and averages of what are momenta already."""
        if refusal := super().refusal(plan):
            return refusal
        steady = [m for m in (plan.schedule, plan.architecture) if m.name in ("streaming", "gossip")]
        if self.doubling and steady:
            return Refusal(
                reason=f"{self} has rounds that grow, and those of {steady[0]} have one length.",
                nearest=(text_with(plan, sync=f"local:{self.H}"),),
            )
        averages = [stage for stage in plan.compression if stage.name == "ema"]
        if self.state == "momenta" and averages:
            kept = "+".join(str(stage) for stage in plan.compression if stage not in averages)
            return Refusal(
                reason=f"{self} sends momenta, which are averages already: {averages[0]} would average them again.",
                nearest=(text_with(plan, compression=kept),),
            )
        return None
