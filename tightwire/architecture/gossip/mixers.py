"""The steps of gossip, one bucket at a time: from where a worker was and where its optimizer led, to where it goes on.

x is the bucket's parameters before the optimizer's step, x½ those after it, W the round's mixing matrix. A worker
whose gradient was lost has x½ = x, and takes part all the same.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar, TypeVar, final

import torch
from torch import Tensor

from tightwire.answers import Answers, CompressionAnswer, Sender
from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.gossip import Gossip
from tightwire.architecture.gossip.mixing import ROUNDING
from tightwire.architecture.gossip.neighbours import Heard, Neighbours
from tightwire.architecture.gossip.stages import DCD, ECD, SAPS, Choco, DeepSqueeze, GossipStage
from tightwire.architecture.round import Round
from tightwire.compression import Codec, Identity
from tightwire.compression.stage import sender_at, sender_of
from tightwire.sync import Rounds

AnyStage = TypeVar("AnyStage", bound=GossipStage)


class Mixer(abc.ABC):
    """What one bucket does in a round of gossip. Memory is allocated once, at the common start.

    Class attributes:
        starts_early: whether what neighbours are told does not depend on the step under way, so that it may travel
            behind computation: `prepare` then comes as soon as x is known.
    """

    starts_early: ClassVar[bool] = False

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        """Allocates what rounds will need.

        Args:
            neighbours: of this worker.
            compression: a codec, and the stages around it.
            start: (numel,) the parameters, equal on all ranks; copied where they are remembered.
        """
        self.neighbours = neighbours
        self._compression = tuple(compression)
        self._whose = neighbours.rank  # of whom a message's random numbers are
        self._scratch = torch.empty_like(start)

    def prepare(self, x: Tensor, now: Round) -> None:
        """Does what can be done before the step: talks to neighbours about `x`, which is left as it is."""
        return

    @abc.abstractmethod
    def run(self, x: Tensor, half: Tensor, now: Round) -> None:
        """Turns `half`, x½, into the parameters to go on from, in place; `x` is left as it is."""

    def kept(self) -> dict[str, Tensor]:
        """Returns what must survive a checkpoint, by what it is called; flat, shares memory."""
        return {}

    def restart(self, x: Tensor) -> None:
        """Forgets everything: all workers go on from the same `x`."""
        for kept in self.kept().values():
            kept.copy_(x)

    def message_bytes(self, now: Round) -> int:
        """Returns the size of this round's message, its header aside."""
        return self._codec(now).wire_bytes(self._scratch.numel(), self._scratch.itemsize)

    def _codec(self, now: Round) -> Codec:
        codec = sender_at(self._compression, now.number)
        assert isinstance(codec, Codec)
        return codec

    def _send(self, x: Tensor, now: Round) -> Tensor:
        """Makes the round's message of `x`, in whose place is then what the message does not carry; returns it."""
        codec = self._codec(now)
        message = self.neighbours.message(codec.wire_bytes(x.numel(), x.itemsize))
        codec.encode(x, message, seed=message_seed(now.seed, self._whose, self.neighbours.tag))
        return message

    def _send_copy(self, x: Tensor, now: Round) -> None:
        """Makes the round's message of `x`, and leaves `x` as it is."""
        if isinstance(self._codec(now), Identity):
            self.neighbours.message(x.nbytes).view(x.dtype).copy_(x)
        else:
            self._send(self._scratch.copy_(x), now)

    def _mix(self, own: Tensor, out: Tensor, now: Round) -> None:
        """Sends `own`, and writes Σ Wᵢⱼvⱼ to `out`, where vᵢ is `own`; what is lost counts as own."""
        self._send_copy(own, now)
        arrivals = self.neighbours.exchange(now.number)
        rank = self.neighbours.rank
        kept = self.neighbours.graph.at(now.number).weight(rank, rank)
        torch.mul(own, kept, out=out)  # while messages travel
        missing = 1.0 - kept
        for heard in arrivals:
            self._add(heard, out, now)
            missing -= heard.weight
        if missing > ROUNDING:
            out.add_(own, alpha=missing)

    def _add(self, heard: Heard, out: Tensor, now: Round) -> None:
        codec = self._codec(now)
        if isinstance(codec, Identity):
            out.add_(heard.payload.view(out.dtype), alpha=heard.weight)
            return
        codec.decode(heard.payload, self._scratch)
        out.add_(self._scratch, alpha=heard.weight)


@final
class DPSGD(Mixer):
    """x ← Wx + (x½ − x): the gradient step, computed at x, is applied to the mixed parameters."""

    starts_early: ClassVar[bool] = True

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._mixed = start.clone()

    def prepare(self, x: Tensor, now: Round) -> None:  # noqa: D102
        self._mix(x, self._mixed, now)

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        half.sub_(x).add_(self._mixed)

    def restart(self, x: Tensor) -> None:  # noqa: D102
        self._mixed.copy_(x)


@final
class Averaging(Mixer):
    """x ← W x½, after several local steps (Cooperative SGD, Wang and Joshi 2018, arXiv:1808.07576, equation 8)."""

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._mixed = torch.empty_like(start)

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        self._mix(half, self._mixed, now)
        half.copy_(self._mixed)


@final
class D2(Mixer):
    """x ← W(x½ + x − x½₋): with x½ = x − ηg that is W(2x − x₋ − ηg + ηg₋), and in the first round Wx½.

    Converges where λₙ(W) > −1/3 (assumption 1.3). A ring of an even number of workers has −1/3, a star less: the graph
    hands over (I + W)/2 for these (`Method.eigenvalues_above`). Lifting λₙ only just above the bound diverged on a
    small network under momentum. The recursion is that of exact diffusion, too, as in an example of BlueFog
    (github.com/Bluefog-Lib/bluefog); the rest is from memory of the paper, which has no momentum, and whose theorem 1
    asks for a rate that falls with 1 − λ₂.
    """

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._before = start.clone()
        self._mixed = torch.empty_like(start)

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        extrapolated = self._before.neg_().add_(x).add_(half)
        self._mix(extrapolated, self._mixed, now)
        self._before.copy_(half)
        half.copy_(self._mixed)

    def kept(self) -> dict[str, Tensor]:  # noqa: D102
        return {"stepped": self._before}


@final
class SGP(Mixer):
    """Push-sum: y ← P(wx + x½ − x), w ← Pw, x ← y/w, with P column-stochastic by equal shares over who is sent to.

    Algorithm 1 with y for the paper's biased x, and x for its de-biased z. The sum of all y is kept on any directed
    graph; where neighbours are lost, what was on its way to them is.

    Attributes:
        weight: w.
    """

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._pushed = torch.empty_like(start)
        self.weight = 1.0

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        half.add_(x, alpha=self.weight - 1.0)  # y + (x½ − x)
        own = self.neighbours.graph.at(now.number).push_share(self.neighbours.rank)
        torch.mul(half, own, out=self._pushed)
        weight = own * self.weight
        self._send_copy(half, now)
        for heard in self.neighbours.exchange(now.number, share=self.weight, pushes=True):
            self._add(heard, self._pushed, now)
            weight += heard.weight * heard.share
        self.weight = weight
        torch.div(self._pushed, weight, out=half)

    def restart(self, x: Tensor) -> None:  # noqa: D102
        self.weight = 1.0


class _Compressed(Mixer):
    """Keeps Σ Wᵢⱼ of something that neighbours tell by increments, instead of one replica per neighbour.

    Where a neighbour is lost, its last replica stays in the sum, and its increments are taken to be this worker's own.
    """

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._sum = start.clone()
        self._own = torch.empty_like(start)  # what this worker's last message says
        self._leftover = torch.empty_like(start)

    def _tell(self, value: Tensor, now: Round, into: Tensor) -> None:
        """Sends C(value), which is then in `own`, and adds Σ WᵢⱼC(vⱼ) to `into`; `value` becomes the leftover."""
        message = self._send(value, now)
        codec = self._codec(now)
        codec.decode(message, self._own)
        given = 0.0
        for heard in self.neighbours.exchange(now.number):
            self._add(heard, into, now)
            given += heard.weight
        into.add_(self._own, alpha=1.0 - given)

    def kept(self) -> dict[str, Tensor]:
        return {"sum": self._sum}


@final
class ChocoMixer(_Compressed):
    """q = C(x½ − x̂); x̂ ← x̂ + q; x ← x½ + γ(Σ Wᵢⱼx̂ⱼ − x̂ᵢ)."""

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._replica = start.clone()
        self._gamma = _stage(compression, Choco).gamma or consensus_rate(sender_of(compression))

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        torch.sub(half, self._replica, out=self._leftover)
        self._tell(self._leftover, now, self._sum)
        self._replica.add_(self._own)
        half.add_(self._sum, alpha=self._gamma).sub_(self._replica, alpha=self._gamma)

    def kept(self) -> dict[str, Tensor]:  # noqa: D102
        return {"sum": self._sum, "replica": self._replica}


@final
class DCDMixer(_Compressed):
    """x ← x + C(z), z = Σ Wᵢⱼxⱼ + (x½ − x) − x; neighbours follow exactly."""

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        torch.add(self._sum, half, out=self._leftover).sub_(x, alpha=2.0)
        self._tell(self._leftover, now, self._sum)
        torch.add(x, self._own, out=half)


@final
class ECDMixer(_Compressed):
    """x ← Σ Wᵢⱼx̃ⱼ + (x½ − x); z = (1 − t/2)x₋ + (t/2)x; x̃ ← (1 − 2/t)x̃ + (2/t)C(z)."""

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        t = float(now.number)
        half.sub_(x).add_(self._sum)
        torch.mul(half, t / 2, out=self._leftover).add_(x, alpha=1 - t / 2)
        self._sum.mul_(t / 2 - 1)
        self._tell(self._leftover, now, self._sum)
        self._sum.mul_(2 / t)


@final
class DeepSqueezeMixer(_Compressed):
    """v = x½ + e; e ← v − C(v); x ← x½ + η(Σ WᵢⱼC(vⱼ) − C(vᵢ))."""

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._leftover.zero_()
        self._eta = _stage(compression, DeepSqueeze).eta or consensus_rate(sender_of(compression))

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        self._leftover.add_(half)
        self._sum.zero_()
        self._tell(self._leftover, now, self._sum)
        if self._codec(now).lossless:
            self._leftover.zero_()
        half.add_(self._sum, alpha=self._eta).sub_(self._own, alpha=self._eta)

    def kept(self) -> dict[str, Tensor]:  # noqa: D102
        return {"error": self._leftover}

    def restart(self, x: Tensor) -> None:  # noqa: D102
        self._leftover.zero_()


@final
class SAPSMixer(_Compressed):
    """x ← x½ + Σ Wᵢⱼ C(xⱼ½) − C(xᵢ½), where C keeps the same elements on all workers in a round."""

    def __init__(
        self, neighbours: Neighbours, compression: Sequence[CompressionAnswer], start: Tensor
    ) -> None:
        super().__init__(neighbours, compression, start)
        self._whose = 0

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        self._leftover.copy_(half)
        self._sum.zero_()
        self._tell(self._leftover, now, self._sum)
        half.add_(self._sum).sub_(self._own)

    def kept(self) -> dict[str, Tensor]:  # noqa: D102
        return {}


@final
class NoLoCo(Mixer):
    """δ ← αδ − βΣ WᵢⱼΔⱼ − γ(φᵢ − Σ Wᵢⱼφⱼ); φ ← φ + δ, with slow parameters φ, fast ones θ and Δ = φ − θ.

    With DiLoCo's sign of Δ; α and β are the outer step's momentum and rate. γ = 1: where nothing moves, a pair's slow
    parameters meet; the authors' code (github.com/gensyn-ai/noloco, `sparse_optimizer_c`) takes γ = β, with α = 0.5 and
    β = 0.7. A message holds Δ and φ.
    """

    GAMMA: ClassVar[float] = 1.0

    def __init__(
        self,
        neighbours: Neighbours,
        compression: Sequence[CompressionAnswer],
        start: Tensor,
        *,
        lr: float,
        momentum: float,
    ) -> None:
        super().__init__(neighbours, compression, torch.cat([start, start]))
        self._lr, self._momentum = lr, momentum
        self._told, self._mixed = torch.empty_like(self._scratch), torch.empty_like(self._scratch)
        self._move = torch.zeros_like(start)

    def run(self, x: Tensor, half: Tensor, now: Round) -> None:  # noqa: D102
        change, slow = self._told[: len(x)], self._told[len(x) :]
        torch.sub(x, half, out=change)
        slow.copy_(x)
        self._mix(self._told, self._mixed, now)
        mean_change, mean_slow = self._mixed[: len(x)], self._mixed[len(x) :]
        self._move.mul_(self._momentum).sub_(mean_change, alpha=self._lr)
        self._move.add_(mean_slow, alpha=self.GAMMA).sub_(x, alpha=self.GAMMA)
        torch.add(x, self._move, out=half)

    def kept(self) -> dict[str, Tensor]:  # noqa: D102
        return {"move": self._move}

    def restart(self, x: Tensor) -> None:  # noqa: D102
        self._move.zero_()


METHOD_MIXERS: dict[str, type[Mixer]] = {"d-psgd": DPSGD, "d2": D2, "sgp": SGP}
STAGE_MIXERS: dict[type[GossipStage], type[Mixer]] = {
    Choco: ChocoMixer,
    DCD: DCDMixer,
    ECD: ECDMixer,
    DeepSqueeze: DeepSqueezeMixer,
    SAPS: SAPSMixer,
}


def build_mixer(
    plan: Answers, compression: Sequence[CompressionAnswer], neighbours: Neighbours, start: Tensor
) -> Mixer:
    """Builds the mixer of one bucket.

    Args:
        plan: its method counts where no stage brings its own steps; where workers make several steps between rounds,
            plain gossip averages what they made.
        compression: a codec, and the stages around it.
        neighbours: of this worker.
        start: (numel,) the parameters, equal on all ranks.
    """
    architecture, sync = plan.architecture, plan.sync
    assert isinstance(architecture, Gossip), architecture
    if architecture.way.slow:
        assert isinstance(sync, Rounds), sync
        outer = sync.outer
        return NoLoCo(neighbours, compression, start, lr=outer.lr, momentum=outer.momentum)
    stage = next((type(s) for s in compression if isinstance(s, GossipStage)), None)
    kind = STAGE_MIXERS[stage] if stage else METHOD_MIXERS[architecture.method]
    is_local = isinstance(sync, Rounds)
    return (Averaging if kind is DPSGD and is_local else kind)(neighbours, compression, start)


def consensus_rate(codec: Sender) -> float:
    """Returns δ/(2 − δ), where 1 − δ is the share of a Gaussian vector's energy that the codec loses."""
    assert isinstance(codec, Codec)
    if codec.lossless:
        return 1.0
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    message = torch.empty(codec.wire_bytes(x.numel()), dtype=torch.uint8)
    energy = x.square().sum()
    codec.encode(x, message, seed=1)
    kept = float((1 - x.square().sum() / energy).clamp(0.01, 1.0))
    return kept / (2 - kept)


def _stage(compression: Sequence[CompressionAnswer], kind: type[AnyStage]) -> AnyStage:
    return next(stage for stage in compression if isinstance(stage, kind))
