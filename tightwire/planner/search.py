"""Searches plans: all candidates first, then what differs in one answer from the best, until nothing gets better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tightwire.architecture import AllReduce
from tightwire.architecture.allreduce.accuracy import error_by_name
from tightwire.architecture.allreduce.allreduce import NEGLIGIBLE
from tightwire.cluster import Cluster
from tightwire.compression import Codec
from tightwire.errors import PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.planner.bounds import lower_bound_s
from tightwire.planner.candidates import (
    Allowance,
    candidates,
    departures,
    keeps_optimizer,
    neighbours,
    stock_plan,
)
from tightwire.planner.deviation import deviation
from tightwire.profile import Profile
from tightwire.simulate import Prediction, fit_of, predict

# Of plans this close to the fastest, the one that changes training least is taken.
SAME_CLASS = 0.10
# Programs are made for a cluster's links within a second among so many workers; beyond, only when named.
MAX_MADE = 32
# More pieces than this cost more to keep in order than their order gains, and long to predict; only when named.
MOST_PIECES = 4096
# A program may lose so many times as much of a lossy codec's mean as the one that `auto` takes, which studies had.
MOST_LOST = 1.1
# How many of the fastest are looked around in each round, and how many rounds are made at most.
WIDTH, ROUNDS = 2, 4


@dataclass
class Search:
    """Predicted plans, and what of the others is known.

    Attributes:
        rows: what was predicted, stock first.
        times: by what a plan's step time is multiplied before plans are compared: how many more steps it needs.
        known: predictions made before, of this profile on this cluster, by the plan's text.
        toll_s: what is added to it: for how long workers could be had for the price of its traffic.
        considered: how many plans were looked at.
        pruned: how many of them were not predicted, for their lower bound is above the best found.
    """

    profile: Profile
    cluster: Cluster
    allow: Allowance
    times: Callable[[Plan], float] = field(default=lambda plan: 1.0)
    toll_s: Callable[[Prediction], float] = field(default=lambda row: 0.0)
    known: Mapping[str, Prediction] = field(default_factory=dict)
    rows: list[Prediction] = field(default_factory=list)
    considered: int = 0
    pruned: int = 0
    _seen: set[str] = field(default_factory=set)

    def run(self) -> list[Prediction]:
        """Searches, and returns all rows, fastest first.

        Raises:
            PlanError: an unknown allowance, or a model that does not fit the memory of the devices.
        """
        stock = stock_plan()
        self.rows.append(self.known.get(str(stock)) or predict(stock, self.profile, self.cluster))
        self._seen.add(str(stock))
        self.considered = 1
        levelled = self.cluster.links is not None
        size, adding = self.profile.num_bytes, self.cluster.adding is not None
        apart = self.profile.is_apart
        self._predict(candidates(size, self.allow, levelled=levelled, adding=adding))
        looked_around: set[str] = set()
        for _ in range(ROUNDS):
            centres = [plan for plan in self._best() if str(plan) not in looked_around]
            if not centres:
                break
            looked_around.update(map(str, centres))
            self._predict(
                other
                for plan in centres
                for other in neighbours(plan, size, self.allow, levelled=levelled, adding=adding, apart=apart)
            )
        return sorted(self.rows, key=self.worth)

    def worth(self, row: Prediction) -> float:
        """Returns what plans are compared by; the less, the better."""
        return self.times(row.plan) * row.step_s + self.toll_s(row)

    def _best(self) -> list[Plan]:
        """Returns the fastest plans, and of those about as fast the one that changes training least."""
        fastest = sorted((row for row in self.rows if keeps_optimizer(row.plan)), key=self.worth)
        equals = [row for row in fastest if self.worth(row) <= self.worth(fastest[0]) * (1 + SAME_CLASS)]
        mildest = min(equals, key=lambda row: (deviation(row.plan), row.step_s))
        return list(dict.fromkeys([mildest.plan, *(row.plan for row in fastest[:WIDTH])]))

    def _predict(self, plans: Iterable[Plan]) -> None:
        """Predicts those of some plans that may be worth it, those with the lowest bounds first."""
        best_s = min(self.worth(row) for row in self.rows if keeps_optimizer(row.plan))
        for bound_s, plan in sorted(self._bounded(plans), key=lambda pair: pair[0]):
            if bound_s > best_s * (1 + SAME_CLASS):
                self.pruned += 1
                continue
            try:
                found = self.known.get(str(plan)) or predict(plan, self.profile, self.cluster)
            except (
                PlanError,
                ProgramError,
            ):  # no such program among so many workers, or none that can be predicted
                continue
            self.rows.append(found)
            if keeps_optimizer(plan):
                best_s = min(best_s, self.worth(found))

    def _bounded(self, plans: Iterable[Plan]) -> Iterable[tuple[float, Plan]]:
        for plan in plans:
            if (text := str(plan)) in self._seen:
                continue
            self._seen.add(text)
            self.considered += 1
            try:
                if competes(plan, self.profile, self.cluster):
                    yield self.times(plan) * lower_bound_s(plan, self.profile, self.cluster), plan
            except (PlanError, ProgramError):
                continue


def competes(plan: Plan, profile: Profile, cluster: Cluster) -> bool:
    """Whether a plan is predicted from measurements as far as there are any; priors would flatter it.

    Raises:
        PlanError: a plan that cannot be had on this cluster.
        ProgramError: likewise.
    """
    if departures(plan) == 0:
        return True
    if plan.sync.steps_inside and cluster.workers_per_node < 2:  # no worker has a node to average with
        return False
    if profile.num_bytes > MOST_PIECES * plan.schedule.cut_bytes > 0:
        return False
    architecture = plan.architecture
    if isinstance(architecture, AllReduce) and architecture.is_made and cluster.workers > MAX_MADE:
        return False
    if not _keeps_error(plan, profile, cluster):
        return False
    sender = plan.compression[0]
    if (
        profile.codecs
        and not (isinstance(sender, Codec) and sender.lossless)
        and not _is_timed(sender.name, profile)
    ):
        return False
    return not cluster.fits or fit_of(plan, profile, cluster).source == "measured"


def _keeps_error(plan: Plan, profile: Profile, cluster: Cluster) -> bool:
    """Whether a program encodes sums so seldom that what studies saw of a lossy codec holds for it."""
    architecture, codec = plan.architecture, plan.sender
    if not isinstance(architecture, AllReduce) or not isinstance(codec, Codec) or codec.lossless:
        return True
    # Of nodes only what crosses them is encoded; programs that are made for links are few, and asked for by name.
    if (
        architecture.by == "auto"
        or architecture.is_levelled
        or architecture.is_switched
        or architecture.is_made
    ):
        return True
    workers, itemsize = cluster.workers, profile.parameters[0].itemsize
    numel = profile.num_bytes // itemsize
    usual = AllReduce().program_name(codec, workers, numel, itemsize)
    found, least = (error_by_name(name, codec, numel, workers) for name in (architecture.by, usual))
    return found <= max(NEGLIGIBLE, MOST_LOST * least)


def _is_timed(name: str, profile: Profile) -> bool:
    return any(cost.compression.partition(":")[0] == name for cost in profile.codecs)
