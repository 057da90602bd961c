"""What one bucket costs: encoding, the program on this cluster's wire, decoding."""

from __future__ import annotations

from dataclasses import dataclass

from tightwire.cluster import PRIOR_RESIDUAL, Cluster, Fit
from tightwire.collectives import AllReduce, Setting
from tightwire.collectives.traffic import PIECE_BYTES
from tightwire.compression import Codec, Identity, Stage
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.simulate.shape import shape_of
from tightwire.simulate.traffic import sent_bytes

# From this contention on, a communication thread takes its whole processor time from compute.
SATURATED = 1.5
# Input to work, work to sum, losses to leftover, sum to mean, the check.
LOSSY_PASSES = 5


@dataclass(frozen=True, kw_only=True)
class BucketCost:
    """One bucket's time on its worker's communication thread, by what it is spent on.

    Attributes:
        codec_s: encoding, decoding and passes over memory that no transfer hides.
        latency_s: the part of the program's time that does not depend on bytes.
        wire_s: the part that does.
        sent_bytes: payload that the busiest worker sends.
        stolen_s: compute time that it costs while both overlap, where workers share cores.
    """

    codec_s: float
    latency_s: float
    wire_s: float
    sent_bytes: int
    stolen_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole."""
        return self.codec_s + self.latency_s + self.wire_s


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Prices the buckets of one plan on one cluster."""

    plan: Plan
    profile: Profile
    cluster: Cluster

    def bucket(self, numel: int, itemsize: int) -> BucketCost:
        """Returns the cost of one bucket of `numel` elements."""
        program, codec = self.program_at(numel, itemsize), self.sender(numel, itemsize)
        fit, sent = self.fit_of(program), sent_bytes(program, codec, numel, itemsize, self.cluster.workers)
        wire_s = fit.beta_s_per_byte * sent
        codec_s = self._codec_s(program, codec, numel)
        hidden_s = self._hidden_s(program, numel * itemsize, codec_s, wire_s)
        passes_s = self._passes_s(codec, numel)
        return BucketCost(
            codec_s=codec_s - hidden_s + passes_s,
            latency_s=fit.alpha_s * self.profile.contention,  # who waits for a core answers late
            wire_s=wire_s,
            sent_bytes=sent,
            stolen_s=self._stolen_s(codec_s + passes_s, fit.cpu_s_per_byte * sent),
        )

    @property
    def codec(self) -> Codec:
        """The plan's codec: its first compression stage."""
        return _codec_of(self.plan)

    @property
    def program(self) -> str:
        """The name of the program that carries large buckets of the plan's messages."""
        return program_of(self.plan)

    @property
    def fit(self) -> Fit:
        """How long that program takes: as measured, or by its formula."""
        return self.fit_of(self.program)

    def fit_of(self, program: str) -> Fit:
        """Returns how long a program takes: as measured, or by its formula."""
        return self.cluster.fit(program) or prior(program, self.cluster)

    def sender(self, numel: int, itemsize: int) -> Codec:
        """Returns what sends one bucket, by the same definition that the runtime goes by."""
        return self._architecture.sender(self.codec, numel, itemsize, self.cluster.workers)

    def program_at(self, numel: int, itemsize: int) -> str:
        """Returns the name of the program that carries one bucket, by the same definition that the runtime goes by."""
        setting = Setting(num_ranks=self.cluster.workers, costs=self.cluster.costs)
        return self._architecture.choose(self.sender(numel, itemsize), numel, itemsize, setting)

    @property
    def _architecture(self) -> AllReduce:
        program_of(self.plan)  # refuses others
        assert isinstance(self.plan.architecture, AllReduce)
        return self.plan.architecture

    @property
    def control_s(self) -> float:
        """The small message in which ranks count who used which parameter."""
        program = "recursive-doubling"
        return (self.cluster.fit(program) or prior(program, self.cluster)).alpha_s

    @property
    def control_bytes(self) -> int:
        """What the busiest worker sends of it: a float32 per parameter and one more, by recursive doubling."""
        count = len(self.profile.parameters) + 1
        return sent_bytes("recursive-doubling", Identity(), count, 4, self.cluster.workers)

    def _codec_s(self, program: str, codec: Codec, numel: int) -> float:
        if codec.lossless or self.cluster.workers == 1:
            return 0.0
        cost, shape = self.profile.codec_cost(str(codec)), shape_of(program, self.cluster.workers)
        per_chunk_s = shape.encodes * cost.encode_s_per_element + shape.decodes * cost.decode_s_per_element
        calls = max(shape.encodes, shape.decodes)
        return per_chunk_s * numel / shape.chunks + cost.fixed_s * calls

    def _hidden_s(self, program: str, num_bytes: int, codec_s: float, wire_s: float) -> float:
        """Returns what overlaps: the runner encodes one piece of a chunk while the piece before it travels."""
        shape = shape_of(program, self.cluster.workers)
        if program == "native" or shape.chunks == 1:
            return 0.0
        pieces = max(1, round(num_bytes / shape.chunks / PIECE_BYTES))
        return min(codec_s, wire_s) * (1 - 1 / pieces)

    def _stolen_s(self, work_s: float, moving_s: float) -> float:
        """Returns what compute loses to the communication thread: nothing where there are cores to spare.

        Args:
            work_s: codecs and passes, timed under the profile's contention.
            moving_s: processor time of the transfer, timed without.
        """
        contention = self.profile.contention
        saturation = min(1.0, (contention - 1.0) / (SATURATED - 1.0))
        return saturation * (work_s + moving_s * contention)

    def _passes_s(self, codec: Codec, numel: int) -> float:
        """Returns the time of checking the mean, and of bringing lossy work into memory of its own and back."""
        passes = 1 if codec.lossless else LOSSY_PASSES
        return passes * numel * self.profile.pass_s_per_element


def program_of(plan: Plan) -> str:
    """Returns the name of the program that carries the plan's messages.

    Raises:
        PlanError: an architecture or a compression that cannot be predicted yet.
    """
    architecture, codec = plan.architecture, _codec_of(plan)
    if not isinstance(architecture, AllReduce):
        raise PlanError(f"{plan}: {architecture} cannot be predicted yet; allreduce can.")
    if architecture.is_levelled and not codec.lossless:
        raise PlanError(
            f"{plan} cannot be predicted yet: it compresses across nodes alone. Predict it with none, or by ring."
        )
    return architecture.program_name(codec)


def _codec_of(plan: Plan) -> Codec:
    codec = plan.compression[0]
    if not isinstance(codec, Codec):
        raise PlanError(
            f"{plan}: {codec} cannot be predicted yet: it has an exchange of its own; codecs can."
        )
    if mixed := [stage for stage in plan.compression[1:] if isinstance(stage, Stage) and stage.mixes]:
        raise PlanError(
            f"{plan}: {mixed[0]} cannot be predicted yet: it compresses some rounds or tensors only. Predict the plan "
            "without it."
        )
    return codec


def prior(program: str, cluster: Cluster) -> Fit:
    """Returns the α–β formula of a program that was not measured: latency per step, and bytes over the line.

    >>> round(prior("ring", Cluster.uniform(4, 1e8, 1e-4)).alpha_s, 9)
    0.0006
    """
    steps = shape_of(program, cluster.workers).steps
    return Fit(
        program=program,
        alpha_s=steps * cluster.latency_s,
        beta_s_per_byte=1 / cluster.bandwidth_bytes_per_s,
        residual=PRIOR_RESIDUAL,
        source="prior",
    )
