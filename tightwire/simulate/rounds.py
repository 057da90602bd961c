"""Predicts plans whose exchanges travel beside whole steps, or come after several steps that workers make alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.compression import Identity
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate.cost import FREE, BucketCost, node_of
from tightwire.simulate.exchange import SimulatedExchange, scaled
from tightwire.simulate.prediction import Bound, PredictedSegment, Prediction, bound_by
from tightwire.simulate.stragglers import late_s

# Local methods subtract parameters from anchors, anchors from means, and copy the result back.
LOCAL_PASSES = 3
# An outer step reads and writes a momentum as well.
OUTER_PASSES = 2


def predict_delayed(plan: Plan, profile: Profile, cluster: Cluster) -> Prediction:
    """Predicts a plan whose exchange of a step's gradients travels while later steps are made."""
    return _Delayed(plan=plan, profile=profile, cluster=cluster).prediction()


def predict_rounds(plan: Plan, profile: Profile, cluster: Cluster) -> Prediction:
    """Predicts a plan of rounds, that of a round's steps in the mean."""
    return _Local(plan=plan, profile=profile, cluster=cluster).prediction()


@dataclass(frozen=True, kw_only=True)
class _Delayed(SimulatedExchange):
    """StepSimulation with means of the step before: compute and exchange side by side, the longer one sets the pace."""

    def prediction(self) -> Prediction:
        """Takes the longer of the two."""
        profile, whole, control = self.profile, self.whole, self.costs.control
        passes_s = (
            2 * self.numel * profile.pass_s_per_element
        )  # gradients go into their slot, means come back
        compute_s = profile.compute_s + passes_s + whole.stolen_s
        moving_s = max(whole.seconds, control.seconds)
        step_s = max(compute_s, moving_s) + late_s(profile, self.cluster)
        return side_by_side(self, step_s, compute_s, whole, control.sent_bytes)


@dataclass(frozen=True, kw_only=True)
class _Local(SimulatedExchange):
    """Rounds of parameters: several steps alone, then an exchange that all wait for, or that travels behind steps."""

    def prediction(self) -> Prediction:
        """Adds up a round, and shares it among its steps."""
        profile, steps = self.profile, self.plan.sync.steps_per_round
        fragments, behind_s = self.schedule.num_fragments, self._steps_behind * profile.compute_s
        share = self.plan.sync.share_sent / fragments
        each = dataclasses.replace(scaled(self.whole, share), latency_s=self.whole.latency_s)
        passes_s = self._passes * self.numel * profile.pass_s_per_element
        inner = self._inner + self._states
        waited_s = fragments * max(0.0, each.seconds + self._told.seconds - behind_s)
        waited_for_s = self._waited_for_s
        exposed_s = waited_s + inner.seconds + waited_for_s + passes_s
        hidden = min(1.0, behind_s / each.seconds) if each.seconds else 0.0
        compute_s = steps * profile.compute_s + fragments * hidden * each.stolen_s
        sent = fragments * (each.sent_bytes + self._told.sent_bytes) + inner.sent_bytes
        path = (
            PredictedSegment(what="compute", start_s=0.0, end_s=compute_s),
            PredictedSegment(what="slowest worker", start_s=compute_s, end_s=compute_s + waited_for_s),
            PredictedSegment(what="exchange", start_s=compute_s + waited_for_s, end_s=compute_s + exposed_s),
        )
        moving = scaled(each, waited_s / each.seconds if each.seconds else 0.0) + inner
        round_s = compute_s + exposed_s
        shares: dict[Bound, float] = {
            "compute": compute_s + passes_s,
            "stragglers": waited_for_s,
            "wire": moving.wire_s,
            "latency": moving.latency_s,
            "codec": moving.codec_s,
            "copies": moving.copy_s,
        }
        found = Prediction(
            plan=self.plan,
            step_s=round_s / steps,
            compute_s=(compute_s + passes_s) / steps,
            codec_s=(self.whole.codec_s + inner.codec_s) / steps,
            exposed_s=(exposed_s - passes_s) / steps,
            bytes_per_step=round(sent / steps),
            bound_by=bound_by(shares, compute_s + passes_s, exposed_s - passes_s),
            critical_path=path,
            across_bytes_per_step=round((self.whole.across_bytes + inner.across_bytes) / steps),
        )
        return self.with_interval(found, steps)

    @property
    def _waited_for_s(self) -> float:
        """For whom a round waits: the last, or the last of a quorum and then the grace, whichever comes first.

        The least of two expectations, which is no less than what is expected of the lesser.
        """
        steps, sync, workers = self.plan.sync.steps_per_round, self.plan.sync, self.cluster.workers
        last_s = late_s(self.profile, self.cluster, steps=steps)
        if (place := sync.awaited(workers)) >= workers:
            return last_s
        quorum_s = late_s(self.profile, self.cluster, steps=steps, place=place)
        return min(last_s, quorum_s + sync.grace_s)

    @property
    def _steps_behind(self) -> int:
        """How many steps are made while an exchange travels."""
        return self.schedule.steps_behind or self.plan.sync.steps_late

    @property
    def _passes(self) -> int:
        return LOCAL_PASSES + (OUTER_PASSES if self.plan.sync.has_outer_step else 0)

    @property
    def _told(self) -> BucketCost:
        """The message that begins a round."""
        return self.costs.message(self.plan.sync.roll_numbers)

    @property
    def _states(self) -> BucketCost:
        """What is averaged of the optimizer's state, as it is."""
        if not (sent := self.plan.sync.states_sent):
            return FREE
        itemsize = self.profile.parameters[0].itemsize
        return scaled(self.costs.bucket(self.profile.num_bytes // itemsize, itemsize, Identity()), sent)

    @property
    def _inner(self) -> BucketCost:
        """The exchanges inside a node between two over all workers."""
        sync = self.plan.sync
        node = sync.workers_inside or self.cluster.workers_per_node
        if not sync.steps_inside or node < 2:
            return FREE
        inside = dataclasses.replace(self, cluster=node_of(self.cluster, node))
        return scaled(inside.whole, sync.steps_per_round // sync.steps_inside - 1)


def side_by_side(
    exchange: SimulatedExchange, step_s: float, compute_s: float, moving: BucketCost, control_bytes: int
) -> Prediction:
    """Returns the prediction of compute and exchange that nothing but the longer one of bounds."""
    is_computing = compute_s >= moving.seconds
    on_wire: Bound = "wire" if moving.wire_s >= max(moving.latency_s, moving.codec_s) else "latency"
    what = "compute" if is_computing else "exchange"
    found = Prediction(
        plan=exchange.plan,
        step_s=step_s,
        compute_s=compute_s,
        codec_s=moving.codec_s,
        exposed_s=max(0.0, step_s - compute_s),
        bytes_per_step=moving.sent_bytes + control_bytes,
        bound_by="compute" if is_computing else on_wire,
        critical_path=(PredictedSegment(what=what, start_s=0.0, end_s=step_s),),
        across_bytes_per_step=round(moving.across_bytes),
    )
    return exchange.with_interval(found)
