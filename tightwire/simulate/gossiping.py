"""Predicts gossip: a step, then one round along the graph's edges; or, asynchronously, rounds behind the steps."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property

from tightwire.architecture import Gossip
from tightwire.cluster import PRIOR_RESIDUAL, Cluster, Fit
from tightwire.compression import Codec
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate.carrier import Carrier
from tightwire.simulate.flows import program_seconds
from tightwire.simulate.pace import slowest_of
from tightwire.simulate.prediction import Bound, Prediction, Span
from tightwire.sync import Sync

STANDARD_DEVIATIONS = 2.0
# Rounds of a period that are looked at; drawn graphs have many that are alike.
MOST_ROUNDS = 16
# Parameters go out, neighbours' come in and are weighed.
MIXING_PASSES = 4


def predict_gossip(plan: Plan, profile: Profile, cluster: Cluster) -> Prediction:
    """Predicts a plan of gossip, in the mean over the rounds of its graph's period."""
    return _Mixing(plan=plan, profile=profile, cluster=cluster).prediction()


@dataclass(frozen=True, kw_only=True)
class _Mixing:
    plan: Plan
    profile: Profile
    cluster: Cluster

    def prediction(self) -> Prediction:
        profile, steps = self.profile, self._sync.steps_per_round
        compute_s = steps * profile.compute_s
        moving_s, sent = self._round_s, self._round_bytes
        work_s = self._work_s
        late_s = self._lateness * profile.noise * profile.compute_s * math.sqrt(steps)
        if self._gossip.asynchronous:  # behind the steps; waits only for the line
            round_s = max(compute_s, moving_s + work_s)
            late_s = 0.0
        else:
            round_s = compute_s + moving_s + work_s + late_s
        deviation_s = math.hypot(profile.noise * compute_s / math.sqrt(steps), PRIOR_RESIDUAL * moving_s)
        shares: dict[Bound, float] = {
            "compute": compute_s + late_s,
            "wire": moving_s - self._latency_s,
            "latency": self._latency_s,
            "codec": work_s,
        }
        return Prediction(
            plan=str(self.plan),
            step_s=round_s / steps,
            low_s=max(0.0, round_s - STANDARD_DEVIATIONS * deviation_s) / steps,
            high_s=(round_s + STANDARD_DEVIATIONS * deviation_s) / steps,
            compute_s=compute_s / steps,
            codec_s=work_s / steps,
            exposed_s=(round_s - compute_s) / steps,
            bytes_per_step=round(sent / steps),
            bound_by=max(shares, key=shares.__getitem__),
            critical_path=(
                Span(what="compute", start_s=0.0, end_s=compute_s),
                Span(what="round of gossip", start_s=compute_s, end_s=round_s),
            ),
        )

    @property
    def _sync(self) -> Sync:
        return self.plan.sync

    @property
    def _gossip(self) -> Gossip:
        assert isinstance(self.plan.architecture, Gossip)
        return self.plan.architecture

    @property
    def _codec(self) -> Codec:
        codec = self.plan.compression[0]
        if not isinstance(codec, Codec):
            raise PlanError(f"{self.plan}: {codec} has an exchange of its own, which is no round of gossip.")
        return codec

    @cached_property
    def _rounds(self) -> list[Carrier]:
        workers = self.cluster.workers
        if workers == 1:
            return [Carrier("ring", 1, None)]
        period = self._gossip.over(workers).period
        places = range(1, 1 + min(period, MOST_ROUNDS))
        programs = (self._gossip.program_at(number, workers) for number in places)
        return [Carrier("gossip", workers, program) for program in programs]

    @cached_property
    def _round_bytes(self) -> float:
        """What a worker sends in a round, in the mean: one message per neighbour that hears it."""
        itemsize = self.profile.parameters[0].itemsize
        message = self._codec.wire_bytes(self._numel, itemsize)
        return message * statistics.fmean(way.shape.sends for way in self._rounds)

    @cached_property
    def _fits(self) -> list[Fit]:
        return [self.cluster.fit("gossip") or way.prior(self.cluster) for way in self._rounds]

    @property
    def _latency_s(self) -> float:
        return statistics.fmean(fit.alpha_s for fit in self._fits)

    @cached_property
    def _round_s(self) -> float:
        """What a round's messages take, on the links that they share."""
        itemsize = self.profile.parameters[0].itemsize
        message = float(self._codec.wire_bytes(self._numel, itemsize))
        times = []
        for way, fit in zip(self._rounds, self._fits, strict=True):
            if way.program is not None and self.cluster.links is not None:
                times.append(program_seconds(way.program, self.cluster.links, [message] * way.workers))
            else:
                times.append(fit.seconds(message * _busiest_line(way)))
        return statistics.fmean(times)

    @property
    def _work_s(self) -> float:
        """Mixing, encoding one's own message and decoding the neighbours'."""
        if self.cluster.workers == 1:
            return 0.0
        passes_s = MIXING_PASSES * self._numel * self.profile.pass_s_per_element
        if self._codec.lossless:
            return passes_s
        cost = self.profile.codec_cost(str(self._codec))
        heard = statistics.fmean(_most_heard(way) for way in self._rounds)
        return (
            passes_s
            + cost.fixed_s
            + self._numel * (cost.encode_s_per_element + heard * cost.decode_s_per_element)
        )

    @property
    def _numel(self) -> int:
        return sum(p.numel for p in self.profile.parameters)

    @property
    def _lateness(self) -> float:
        """A worker waits for its neighbours, and so, over rounds, nearly for the slowest of all."""
        return slowest_of(self.cluster.workers)


def _busiest_line(way: Carrier) -> int:
    """Returns how many messages pass the busiest line, in the direction that is busier."""
    if way.program is None:
        return 0
    return max(max(way.shape.sends, len(way.program.receives(rank))) for rank in range(way.workers))


def _most_heard(way: Carrier) -> int:
    if way.program is None:
        return 0
    return max(len(way.program.receives(rank)) for rank in range(way.workers))
