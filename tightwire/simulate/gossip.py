"""Predicts gossip: a step, then one round along the graph's edges; or, asynchronously, rounds behind the steps."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property

from tightwire.architecture import Gossip
from tightwire.cluster import PRIOR_RESIDUAL, Cluster, Fit
from tightwire.compression import Codec
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.profile.values import PRIOR_PASS_S_PER_ELEMENT
from tightwire.simulate.collective import Collective
from tightwire.simulate.flows import program_seconds
from tightwire.simulate.interval import with_interval
from tightwire.simulate.prediction import Bound, PredictedSegment, Prediction, bound_by
from tightwire.simulate.stragglers import late_s

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
        profile, steps = self.profile, self.plan.sync.steps_per_round
        compute_s = steps * profile.compute_s
        moving_s, sent = self._round_s + self._copy_s, self._round_bytes
        work_s = self._work_s
        # A worker waits for its neighbours, and so, over rounds, nearly for the slowest of all.
        place = 0 if self._gossip.asynchronous else None
        waited_for_s = late_s(profile, self.cluster, steps=steps, place=place)
        if self._gossip.asynchronous:  # behind the steps; waits only for the line
            round_s = max(compute_s + waited_for_s, moving_s + work_s)
        else:
            round_s = compute_s + moving_s + work_s + waited_for_s
        shares: dict[Bound, float] = {
            "compute": compute_s,
            "stragglers": waited_for_s,
            "wire": moving_s - self._latency_s - self._copy_s,
            "copies": self._copy_s,
            "latency": self._latency_s,
            "codec": work_s,
        }
        found = Prediction(
            plan=self.plan,
            step_s=round_s / steps,
            compute_s=compute_s / steps,
            codec_s=work_s / steps,
            exposed_s=(round_s - compute_s) / steps,
            bytes_per_step=round(sent / steps),
            bound_by=bound_by(shares, compute_s, round_s - compute_s),
            critical_path=(
                PredictedSegment(what="compute", start_s=0.0, end_s=compute_s),
                PredictedSegment(what="round of gossip", start_s=compute_s, end_s=round_s),
            ),
            across_bytes_per_step=round(self._across_bytes / steps),
        )
        residual = max((fit.residual for fit in self._fits), default=PRIOR_RESIDUAL)
        return with_interval(found, profile, self.cluster, residual, steps=steps)

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
    def _rounds(self) -> list[Collective]:
        workers = self.cluster.workers
        if workers == 1:
            return [Collective("ring", 1, None)]
        period = self._gossip.over(workers).period
        places = range(1, 1 + min(period, MOST_ROUNDS))
        programs = (self._gossip.program_at(number, workers) for number in places)
        return [Collective("gossip", workers, program) for program in programs]

    @cached_property
    def _round_bytes(self) -> float:
        """What a worker sends in a round, in the mean: one message per neighbour that hears it."""
        itemsize = self.profile.parameters[0].itemsize
        message = self._codec.wire_bytes(self._numel, itemsize)
        return message * statistics.fmean(collective.counts.sends for collective in self._rounds)

    @property
    def _across_bytes(self) -> float:
        """What all workers' messages of a round carry from zone to zone, in the mean."""
        if not self.cluster.charges_traffic:
            return 0.0
        message = self._codec.wire_bytes(self._numel, self.profile.parameters[0].itemsize)
        return message * statistics.fmean(c.across_share(self.cluster.zones) for c in self._rounds)

    @cached_property
    def _fits(self) -> list[Fit]:
        return [self.cluster.fit("gossip") or collective.prior(self.cluster) for collective in self._rounds]

    @property
    def _latency_s(self) -> float:
        return statistics.fmean(fit.alpha_s for fit in self._fits)

    @cached_property
    def _round_s(self) -> float:
        """What a round's messages take, on the links that they share."""
        itemsize = self.profile.parameters[0].itemsize
        message = float(self._codec.wire_bytes(self._numel, itemsize))
        times = []
        for collective, fit in zip(self._rounds, self._fits, strict=True):
            if collective.program is not None and self.cluster.links is not None:
                times.append(
                    program_seconds(collective.program, self.cluster.links, [message] * collective.workers)
                )
            else:
                times.append(fit.seconds(message * _busiest_line(collective)))
        return statistics.fmean(times)

    @property
    def _copy_s(self) -> float:
        """Averages are made in host memory: what is mixed comes from the device, and what it becomes goes there."""
        if self.cluster.workers == 1:
            return 0.0
        return 2 * self.profile.num_bytes * self.profile.copy_s_per_byte

    @property
    def _work_s(self) -> float:
        """Mixing, encoding one's own message and decoding the neighbours'."""
        if self.cluster.workers == 1:
            return 0.0
        pass_s = PRIOR_PASS_S_PER_ELEMENT if self.profile.is_apart else self.profile.pass_s_per_element
        passes_s = MIXING_PASSES * self._numel * pass_s
        if self._codec.lossless:
            return passes_s
        cost = self.profile.codec_cost(self._codec)
        heard = statistics.fmean(_most_heard(collective) for collective in self._rounds)
        return (
            passes_s
            + cost.fixed_s
            + self._numel * (cost.encode_s_per_element + heard * cost.decode_s_per_element)
        )

    @property
    def _numel(self) -> int:
        return sum(p.numel for p in self.profile.parameters)


def _busiest_line(collective: Collective) -> int:
    """Returns how many messages pass the busiest line, in the direction that is busier."""
    if collective.program is None:
        return 0
    return max(
        max(collective.counts.sends, len(collective.program.receives(rank)))
        for rank in range(collective.workers)
    )


def _most_heard(collective: Collective) -> int:
    if collective.program is None:
        return 0
    return max(len(collective.program.receives(rank)) for rank in range(collective.workers))
