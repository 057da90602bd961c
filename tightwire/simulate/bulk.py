"""Predicts plans under which all workers average gradients in every step, beside backward or the next forward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate.cost import BucketCost, total
from tightwire.simulate.exchange import SimulatedExchange
from tightwire.simulate.prediction import Bound, PredictedSegment, Prediction, bound_by
from tightwire.simulate.step import PieceTransfer, StepSimulation, Timeline
from tightwire.simulate.stragglers import late_s

# Gradients are copied into buckets as they appear, which reads, writes and turns the caches over.
FILLING_PASSES = 4
# Where no more than this share of compute is waited for, compute is the bound, however long the exchange takes.
HIDDEN_SHARE = 0.02


def predict_bulk(plan: Plan, profile: Profile, cluster: Cluster, *, quick: bool = False) -> Prediction:
    """Predicts a plan with an exchange of gradients in every step; `quick` as in `predict`."""
    return _Bulk(plan=plan, profile=profile, cluster=cluster, quick=quick).prediction()


@dataclass(frozen=True, kw_only=True)
class _Bulk(SimulatedExchange):
    """An agreement on gradients, which overlaps with backward, and under some schedules with the next forward."""

    def prediction(self) -> Prediction:
        """Lets a step happen, and says what it waited for."""
        profile, timeline = self.profile, self._timeline()
        before_s, after_s = profile.forward_s, profile.optimizer_s
        path = tuple(self._critical_path(timeline, before_s, after_s))
        step_s = timeline.end_s + before_s + after_s
        if timeline.period_s:  # the next forward does not wait for the end of the exchange
            step_s = timeline.period_s
        step_s += self._late_s
        compute_s = before_s + timeline.backward_end_s + after_s
        exposed_s = max(0.0, step_s - compute_s)
        shares = _shares(path, timeline, self.piece_costs)
        if exposed_s <= HIDDEN_SHARE * compute_s:
            shares = {"compute": compute_s}
        found = Prediction(
            plan=self.plan,
            step_s=step_s,
            compute_s=compute_s,
            codec_s=self.whole.codec_s,
            exposed_s=exposed_s,
            bytes_per_step=self.whole.sent_bytes + self.costs.control.sent_bytes,
            bound_by=bound_by(shares, compute_s, exposed_s),
            critical_path=path,
            across_bytes_per_step=round(self.whole.across_bytes),
        )
        return self.with_interval(found)

    @property
    def _late_s(self) -> float:
        """How much later than the others the slowest worker arrives."""
        return late_s(self.profile, self.cluster)

    @property
    def _filling_s(self) -> float:
        """What copying gradients into buckets adds to backward."""
        if self.cluster.workers == 1:
            return 0.0
        return FILLING_PASSES * self.numel * self.profile.pass_s_per_element

    def _timeline(self) -> Timeline:
        profile = self.profile
        steps = StepSimulation(
            forward_s=profile.forward_s,
            backward_s=profile.backward_s + self._filling_s,
            optimizer_s=profile.optimizer_s,
            ready_s=[max(p.ready_s for p in bucket) for bucket in self.buckets],
            agenda=self.agenda,
            costs=self.piece_costs,
            control_s=self.costs.control.seconds,
            overlaps_forward=self.schedule.overlaps_forward and self.cluster.workers > 1,
        )
        return steps.simulate(self.schedule.pacer(self.agenda))

    def _critical_path(
        self, timeline: Timeline, before_s: float, after_s: float
    ) -> Iterator[PredictedSegment]:
        """Yields what the end of the round waited for, in order of time."""
        if before_s > 0.0:
            yield PredictedSegment(what="forward", start_s=0.0, end_s=before_s)
        if self._late_s > 0.0:
            yield PredictedSegment(what="slowest worker", start_s=before_s, end_s=before_s + self._late_s)
        begin_s = before_s + self._late_s
        moves, start_s = last_train(timeline)
        if start_s > 0.0:
            yield PredictedSegment(what="backward", start_s=begin_s, end_s=begin_s + start_s)
        for bucket, run in itertools.groupby(moves, key=lambda move: move.bucket):
            pieces = list(run)
            from_s, to_s = min(piece.start_s for piece in pieces), pieces[-1].end_s
            yield PredictedSegment(what=f"bucket {bucket}", start_s=begin_s + from_s, end_s=begin_s + to_s)
        end_s = begin_s + timeline.end_s
        if not moves and timeline.control_end_s > timeline.backward_end_s:
            yield PredictedSegment(what="control message", start_s=begin_s + start_s, end_s=end_s)
        if after_s > 0.0:
            yield PredictedSegment(what="optimizer", start_s=end_s, end_s=end_s + after_s)


def last_train(timeline: Timeline) -> tuple[list[PieceTransfer], float]:
    """Returns the pieces that moved back to back, or side by side, up to the end of the round, and when that began."""
    train: list[PieceTransfer] = []
    start_s = timeline.end_s
    for move in reversed(timeline.moves):
        if move.end_s < start_s and not math.isclose(move.end_s, start_s, rel_tol=1e-9, abs_tol=1e-12):
            break
        train.append(move)
        start_s = min(start_s, move.start_s)
    train.reverse()
    return (train, start_s) if train else ([], timeline.backward_end_s)


def _shares(
    path: tuple[PredictedSegment, ...], timeline: Timeline, costs: list[BucketCost]
) -> dict[Bound, float]:
    """Returns the seconds of the critical path by what they are spent on."""
    train, start_s = last_train(timeline)
    on_path = total(costs[move.piece] for move in train)
    control_s = sum(span.seconds for span in path if span.what == "control message")
    moving_s = (timeline.end_s - start_s if train else 0.0) + control_s
    # Where pieces move side by side, their latencies overlap.
    latency_s = max(0.0, min(on_path.latency_s, moving_s - on_path.seconds + on_path.latency_s))
    late_s = sum(segment.seconds for segment in path if segment.what == "slowest worker")
    total_s = path[-1].end_s if path else 0.0
    return {
        "compute": total_s - moving_s - late_s,
        "stragglers": late_s,
        "wire": on_path.wire_s,
        "latency": latency_s + control_s,
        "codec": on_path.codec_s,
        "copies": on_path.copy_s,
    }
