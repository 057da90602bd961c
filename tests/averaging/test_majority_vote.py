"""A majority vote: what stands for the mean, who abstains, what spoils it, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor

from tests.laws.test_stages import averager as a_bucket_averager
from tests.runtime.training import Net, job, loss_of
from tightwire.architecture.round import Round
from tightwire.averaging.majority_vote import MajorityVote
from tightwire.buckets import BucketLayout, plan_layout
from tightwire.errors import PlanError
from tightwire.kernels import cpu, reference
from tightwire.plan import Plan
from tightwire.transport import Transport, run_threads


def layout(numel: int) -> BucketLayout:
    return plan_layout({"t": torch.empty(numel)}, [[0]])[0]


def elect(votes: Tensor, *, seed: int = 0, block: int = 64) -> Tensor:
    """Returns the outcome of (workers, numel) inputs."""

    def worker(transport: Transport) -> Tensor:
        reducer = MajorityVote(block).build(transport, layout(votes.shape[1]), tag=1)
        mean = torch.empty(votes.shape[1])
        reducer.run(votes[transport.rank].clone(), mean, seed=seed)
        return mean

    means = run_threads(len(votes), worker, deadline_s=20)
    assert all(torch.equal(mean, means[0]) or mean.isnan().any() for mean in means)
    return means[0]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_most_votes_win_and_ties_are_broken_fairly(n: int) -> None:
    votes = torch.randn(n, 5000, generator=torch.Generator().manual_seed(n))
    lead = votes.sign().sum(0)
    outcomes = torch.stack([elect(votes, seed=seed) for seed in range(20)])
    assert torch.equal(outcomes[0][lead != 0], lead.sign()[lead != 0])
    if n % 2 == 0:
        ties = outcomes[:, lead == 0]
        assert ties.numel() > 10_000
        assert abs(float(ties.mean())) < 5 / ties.numel() ** 0.5


def test_zeros_abstain_by_block_and_else_vote_at_random() -> None:
    votes = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    votes[:, 64:128] = 0
    votes[0, 128:192] = 0
    outcome = elect(votes)
    assert not outcome[64:128].any()
    others = votes[1:, 128:192].sign().sum(0)
    assert torch.equal(outcome[128:192][others != 0], others.sign()[others != 0])
    votes = torch.full((3, 4096), -0.0)
    votes[:, ::64] = 1.0
    drawn = torch.stack([elect(votes, seed=seed)[1:64] for seed in range(40)])
    assert abs(float(drawn.mean())) < 5 / drawn.numel() ** 0.5


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_block_for_all(poison: float) -> None:
    votes = torch.ones(3, 200)
    votes[2, 70] = poison
    outcome = elect(votes)
    assert outcome[64:128].isnan().all()
    assert outcome[:64].eq(1).all()


@pytest.mark.parametrize("numel", [1, 7, 64, 1000, 4097])
def test_reference_and_cpu_count_the_same(numel: int) -> None:
    x = torch.randn(4, numel, generator=torch.Generator().manual_seed(1)).round()
    x[0, : numel // 2] = 0
    x[1, numel // 3] = math.nan
    outcomes = []
    for kernels in (cpu, reference):
        size = -(-numel // 64) + -(-numel // 8)
        messages, outcome = torch.empty(4, size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
        for rank, message in enumerate(messages):
            kernels.encode_votes(x[rank], message, 64, rank)
        kernels.count_votes(messages, outcome, numel, 64, 9)
        out = torch.ones(numel)
        kernels.decode_votes(outcome, out, 64, True)
        outcomes.append((messages, outcome, out.nan_to_num(7.0)))
    for mine, theirs in zip(*outcomes, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("stage", ["ef", "ef21", "dense-first:3", "dense-every:2", "min:dims=2"])
def test_refuses_what_needs_a_leftover_or_a_mean(stage: str) -> None:
    with pytest.raises(PlanError, match=r"a vote has no leftover(.|\n)*Nearest legal"):
        Plan.parse(f"bsp/allreduce/sign+{stage}")


def test_momentum_is_voted_on_and_loss_scaling_leaves_the_size() -> None:
    """The mean of a vote is 1 or −1 in true units, also where gradients are scaled."""

    class Scaler:
        def get_scale(self) -> float:
            return 1024.0

    def worker(transport: Transport, plan: str) -> list[Tensor]:
        with job(transport, f"bsp/allreduce/{plan}", model=Net(seed=0), scaler=Scaler()) as j:
            velocity = [torch.zeros_like(p) for p in j.model.parameters()]
            j.optimizer.param_groups[0]["lr"] = 0.0
            for step in range(3):
                gradients = torch.autograd.grad(loss_of(j.model, transport.rank, step), j.model.parameters())
                for v, g in zip(velocity, gradients, strict=True):
                    v.mul_(0.9).add_(g)
                j.optimizer.zero_grad()
                (loss_of(j.model, transport.rank, step) * 1024).backward()
                j.optimizer.step()  # what a round taught is kept once its means are stepped with
        seen = [p.grad / 1024 for p in j.model.parameters() if p.grad is not None]
        return [torch.cat([t.flatten() for t in tensors]) for tensors in (seen, velocity)]

    for plan in ("sign+momentum:0.9", "sign"):
        (seen, first), (_, second), (_, third) = run_threads(3, lambda t, p=plan: worker(t, p), deadline_s=20)
        assert seen.abs().eq(1).all()
        if "momentum" in plan:
            assert torch.equal(seen, (first.sign() + second.sign() + third.sign()).sign())


def test_votes_on_16_bits_are_those_of_true_gradients_whatever_the_loss_scale() -> None:
    """Divided by 32768, these are all zero as float16, and zeros vote at random."""

    def worker(transport: Transport) -> Tensor:
        x = torch.linspace(-1e-3, 1e-3, 200).half()  # no zero among them
        averager = a_bucket_averager(transport, "sign", {"x": x})
        averager.bucket.flat.copy_(x)
        averager.run(Round(number=1, seed=5, scale=torch.tensor(2.0**15)))
        return averager.bucket.flat / (2.0**15 * x.sign() if transport.size > 1 else x)

    assert all(ratio.eq(1).all() for size in (1, 3) for ratio in run_threads(size, worker, deadline_s=20))
