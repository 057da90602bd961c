"""Predicts parameter servers: workers push gradients and pull parameters, and wait for whom the policy says.

A worker's step is its compute, a push and a pull. Lines are full duplex, and a server's line carries all its workers'
pushes in and all pulls out: for M bytes over n workers and k servers, a step's transfers take at least
max(M, n·M/k) over the line's rate each way (Jiang et al. 2020, section 3); colocated owners push and pull (n−1)/n of M,
and serve as much. While one worker computes another's transfers run, so that lines, compute and waiting overlap across
workers, not within one.

Of a model on a GPU whose shards are in host memory, all gradients cross PCIe and all parameters come back; codecs and
the optimizer work at the host's rate. With shards on devices only messages cross, but twice each way: a message goes
from the worker's device to its host, over the wire, and from the owner's host to the owner's device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tightwire.architecture import ParameterServer
from tightwire.architecture.server.parameter_server import Roles
from tightwire.cluster import PRIOR_RESIDUAL, Cluster
from tightwire.compression import Codec
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.profile.values import PRIOR_PASS_S_PER_ELEMENT
from tightwire.simulate.collective import GAP
from tightwire.simulate.cost import FREE, BucketCost
from tightwire.simulate.exchange import scaled
from tightwire.simulate.interval import with_interval
from tightwire.simulate.prediction import Bound, PredictedSegment, Prediction, bound_by
from tightwire.simulate.stragglers import late_s
from tightwire.sync import Served

# A push and its answer: a request, its payload, the reply, its payload.
MESSAGES = 2
HEADER_BYTES = 48


def predict_served(plan: Plan, profile: Profile, cluster: Cluster) -> Prediction:
    """Predicts a plan whose parameters are owned by servers; bytes are those of the busiest worker, its own serving
    included.
    """
    return _Serving(plan=plan, profile=profile, cluster=cluster).prediction()


def server_wire_s(plan: Plan, profile: Profile, cluster: Cluster) -> float:
    """Returns how long a step's pushes and pulls keep the busiest line busy: a worker's own, or an owner's."""
    serving = _Serving(plan=plan, profile=profile, cluster=cluster)
    return serving.wire_s


@dataclass(frozen=True, kw_only=True)
class _Serving:
    plan: Plan
    profile: Profile
    cluster: Cluster

    def prediction(self) -> Prediction:
        profile, moving = self.profile, scaled(self._moving, 1 / self._steps_per_push)
        compute_s = profile.forward_s + profile.backward_s + self._optimizer_s
        waited_for_s = self._waited_for_s
        line_s = self._busiest_line_s / self._steps_per_push
        if self._pushes_together:  # all push at once, and then all pull: the busiest line is busy twice
            step_s = (
                compute_s + waited_for_s + moving.latency_s + moving.codec_s + moving.copy_s
                + max(moving.wire_s, 2 * line_s)
            )  # fmt: skip
        else:  # some push while others compute; lines that carry all workers' bytes may still be the slower ones
            step_s = max(compute_s + moving.seconds, line_s) + waited_for_s
        shares: dict[Bound, float] = {
            "compute": compute_s,
            "stragglers": waited_for_s,
            "wire": step_s - compute_s - waited_for_s - moving.latency_s - moving.codec_s - moving.copy_s,
            "latency": moving.latency_s,
            "codec": moving.codec_s,
            "copies": moving.copy_s,
        }
        found = Prediction(
            plan=self.plan,
            step_s=step_s,
            compute_s=compute_s,
            codec_s=moving.codec_s,
            exposed_s=max(0.0, step_s - compute_s),
            bytes_per_step=moving.sent_bytes,
            bound_by=bound_by(shares, compute_s, max(0.0, step_s - compute_s)),
            critical_path=(
                PredictedSegment(what="compute", start_s=0.0, end_s=compute_s),
                PredictedSegment(what="waiting", start_s=compute_s, end_s=compute_s + waited_for_s),
                PredictedSegment(what="push and pull", start_s=compute_s + waited_for_s, end_s=step_s),
            ),
            across_bytes_per_step=round(self._across_bytes / self._steps_per_push),
        )
        return with_interval(found, profile, self.cluster, PRIOR_RESIDUAL)

    @property
    def wire_s(self) -> float:
        """The time of bytes alone, of the busiest line."""
        line_s = (2 if self._pushes_together else 1) * self._busiest_line_s
        return max(self._moving.wire_s, line_s) / self._steps_per_push

    @property
    def _steps_per_push(self) -> int:
        """How many steps a worker makes by itself before it sends what they changed; 1 where it sends gradients."""
        return self.plan.sync.steps_per_round

    @property
    def _pushes_together(self) -> bool:
        """Whether workers push at once, since a round begins for all of them when the one before is over."""
        return not self.plan.sync.updates_alone and self.plan.sync.steps_between_waits == 1

    @cached_property
    def _roles(self) -> Roles:
        assert isinstance(self.plan.architecture, ParameterServer), self.plan.architecture
        return self.plan.architecture.roles(self.cluster.workers)

    @property
    def _codec(self) -> Codec:
        codec = self.plan.compression[0]
        if not isinstance(codec, Codec):
            raise PlanError(
                f"{self.plan}: {codec} has an exchange of its own, and a server none of that kind."
            )
        return codec

    @property
    def _message_bytes(self) -> int:
        """Of a whole push, or a whole pull."""
        itemsize = self.profile.parameters[0].itemsize
        return self._codec.wire_bytes(self.profile.num_bytes // itemsize, itemsize)

    @property
    def _remote_share(self) -> float:
        """Which share of the model a worker does not own."""
        roles = self._roles
        own = (
            roles.weights[roles.owners.index(roles.workers[-1])] if roles.workers[-1] in roles.owners else 0.0
        )
        return 1 - own / sum(roles.weights)

    @cached_property
    def _moving(self) -> BucketCost:
        """One worker's push and pull, with all lines its own."""
        if self.cluster.workers == 1:
            return FREE
        roles, one_way = self._roles, self._remote_share * self._message_bytes
        wire_s = 2 * one_way / self.cluster.slowest_bytes_per_s
        owners = len(roles.owners) - (roles.workers[-1] in roles.owners)
        serves = len(roles.workers) - 1 if roles.workers[0] in roles.owners else 0
        own = 1 - self._remote_share
        return BucketCost(
            codec_s=self._codec_s,
            latency_s=(MESSAGES * 2 + GAP * 2 * (owners + serves)) * self.cluster.latency_s,
            wire_s=wire_s,
            copy_s=self._copied_bytes * self.profile.copy_s_per_byte,
            sent_bytes=round(one_way + serves * own * self._message_bytes)
            + MESSAGES * HEADER_BYTES * (owners + serves),
        )

    @property
    def _copied_bytes(self) -> float:
        """What is copied between a device and its host from a gradient to new parameters, one after the other."""
        if not self._is_on_device:
            return 2 * self.profile.num_bytes
        return 4 * self._remote_share * self._message_bytes  # a push by worker and owner, and a pull likewise

    @property
    def _is_on_device(self) -> bool:
        assert isinstance(self.plan.architecture, ParameterServer), self.plan.architecture
        return self.plan.architecture.on_device

    @property
    def _slowdown(self) -> float:
        """How many times as long as the worker's device its host takes for what it does for it."""
        profile = self.profile
        if self._is_on_device or not profile.is_apart or not profile.pass_s_per_element:
            return 1.0
        return max(1.0, PRIOR_PASS_S_PER_ELEMENT / profile.pass_s_per_element)

    @property
    def _across_bytes(self) -> float:
        """What pushes and pulls of all workers carry from zone to zone; owners are where the ranks are."""
        if not self.cluster.charges_traffic:
            return 0.0
        roles, zones = self._roles, self.cluster.zones
        whole = sum(roles.weights) or 1.0
        apart = sum(
            weight / whole
            for worker in roles.workers
            for owner, weight in zip(roles.owners, roles.weights, strict=True)
            if zones[worker] != zones[owner]
        )
        return 2 * apart * self._message_bytes

    @property
    def _codec_s(self) -> float:
        """Encoding a push and decoding a pull; an owner does as much for every worker, behind their compute."""
        if self._codec.lossless:
            return 0.0
        cost = self.profile.codec_cost(self._codec)
        numel = sum(p.numel for p in self.profile.parameters)
        each_s = cost.encode_s_per_element + cost.decode_s_per_element
        return cost.fixed_s + numel * each_s * self._slowdown

    @property
    def _busiest_line_s(self) -> float:
        """What all workers' bytes take, a step each, over the line of the owner with the most of the model; or over its
        PCIe, where its shard is behind it and that is slower.
        """
        roles = self._roles
        share = max(roles.weights) / sum(roles.weights)
        from_others = len(roles.workers) - (roles.owners[0] in roles.workers)
        own = self._remote_share if roles.owners[0] in roles.workers else 0.0
        s_per_byte = 1 / self.cluster.slowest_bytes_per_s
        if self._is_on_device:
            s_per_byte = max(s_per_byte, self.profile.copy_s_per_byte)
        return (from_others * share + own) * self._message_bytes * s_per_byte

    @property
    def _optimizer_s(self) -> float:
        """Owners step for all: once per update, however many make one."""
        roles, sync = self._roles, self.plan.sync
        if isinstance(sync, Served) and sync.sends_changes:
            return self.profile.optimizer_s  # each worker's own; the outer step is made behind others' steps
        updates = 1
        if sync.updates_alone:
            updates = len(roles.workers)
        share = max(roles.weights) / sum(roles.weights)
        return self.profile.optimizer_s * self._slowdown * updates * share

    @property
    def _waited_for_s(self) -> float:
        """How long a worker waits for others, in the mean over its steps."""
        sync, workers = self.plan.sync, len(self._roles.workers)
        steps = sync.steps_between_waits
        return (
            late_s(self.profile, self.cluster, steps=steps, place=sync.awaited(workers), ranks=workers)
            / steps
        )
