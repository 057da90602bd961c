"""What every stage promises, whatever it stands around: a new one is a line in `STAGED`."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from tests.laws.members import listed
from tests.runtime.training import job, plain, same, train_all
from tests.runtime.training import momentum as sgd_with_momentum
from tightwire.answers import Member, Sender
from tightwire.architecture import AllReduce
from tightwire.architecture.gossip.stages import GossipStage
from tightwire.architecture.round import Round
from tightwire.averaging import BucketAverager, build_averager
from tightwire.buckets import Bucket, plan_layout
from tightwire.catalogue import catalogue, parse_compression
from tightwire.compression import MEMBERS, Recipe, Stage
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.transport import Counting, Single, Transport, run_threads

SETTINGS = [
    "topk:0.1+ef",
    "int4:rounding=stochastic+ef",
    "topk:0.1+ef21",
    "int4+ef21",
    "int8:rounding=stochastic+diana:0.3",
    "int4:rounding=stochastic+diana:0.1",
    "none+momentum:0.9",
    "int8+momentum:0.5",
    "topk:0.1+ef+momentum:0.9",
    "doublesqueeze+ef+ema:0.9+dense-first:3",
    "int8+ema:0.5+dense-growing:2",
    "topk:0.1+ef+clip:0.5",
    "topk:0.01+ef+warmup:8",
    "int8+dense-first:2",
    "topk:0.1+ef+dense-every:3",
    "topk:0.1+ef21+dense-every:3",
    "topk:0.1+ef+min:4KiB,dims=2",
    "gtopk:0.02+ef+warmup:8",
    "randomk:0.1+ef",
    "int2+loco:0.3,reset=4",
    "strom:0.5,ratio=0.05+ef",
    "layertopk:0.05,by=norm+ef+warmup:8",
    "sketch:0.05+ef",
    "topk:0.1+adacomp:50",
    "strom:0.5,ratio=0.2+adacomp:50+dense-every:3",
    "topk:0.1+variance:1.5",
    "dct:2+ef:0.9+signed",
    "none+signed",
    "meansign+lion:0.8,beta2=0.9",
    "none+lion+signed",
    "powersgd:2+ef+momentum:0.9+dense-every:3",
    "topk:0.1+ef+momentum:0.9+clip:0.5+warmup:8+dense-first:2+dense-every:5",
]
STAGED = [
    text if isinstance(parse_compression(text)[0], Sender) else f"topk:0.1+{text}"
    for text in listed("compression", Stage, SETTINGS)
    if not isinstance(parse_compression(text)[-1], GossipStage)
]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
every_stage = pytest.mark.parametrize("text", STAGED)


def averager(transport: Transport, text: str, tensors: dict[str, Tensor]) -> BucketAverager:
    (layout,) = plan_layout(tensors, [range(len(tensors))])

    def build(sender: Member) -> object:
        return build_averager(AllReduce(), sender, transport, bucket=layout, number=0)  # type: ignore[arg-type]

    return BucketAverager(Bucket(layout), parse_compression(text), build, workers=transport.size)  # type: ignore[arg-type]


def tensors_of(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"matrix": (31, 20), "empty": (0, 3), "one": (1,), "odd": (377,)}
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def values(like: Tensor, rank: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * number + rank)
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def remembered(a: BucketAverager) -> list[Tensor]:
    return [kept.clone() for kinds in a.memory().values() for kept in kinds.values()]


def run(a: BucketAverager, rank: int, number: int, scale: float = 1.0) -> Tensor:
    a.bucket.flat.copy_(values(a.bucket.flat, rank, number) * scale)
    a.run(Round(number=number, seed=number, scale=scale))
    return a.bucket.flat.clone()


def test_every_stage_is_here() -> None:
    used = {type(member) for text in STAGED for member in parse_compression(text)}
    stages = {m for m in catalogue("compression").values() if issubclass(m, Stage)}
    assert {stage for stage in stages if not issubclass(stage, GossipStage)} <= used


@every_stage
@pytest.mark.parametrize(
    ("dtype", "n"),
    [(DTYPES[0], 1), (DTYPES[0], 2), (DTYPES[0], 5), (DTYPES[1], 2), (DTYPES[1], 3), (DTYPES[2], 3)],
    ids=str,
)
def test_means_agree_and_bytes_are_as_planned(text: str, dtype: torch.dtype, n: int) -> None:
    """Laws 2 and 9, in every round, whatever sends in it."""

    def worker(transport: Transport) -> list[Tensor]:
        counting = Counting(transport)
        a = averager(counting, text, tensors_of(dtype))
        means = []
        for number in range(1, 12):
            planned, before = a.bytes_in(number), counting.bytes_sent
            means.append(run(a, transport.rank, number))
            a.keep()
            assert counting.bytes_sent - before == planned
            assert a.finite
        return means

    results = run_threads(n, worker, deadline_s=20) if n > 1 else [worker(Single())]
    for means in results:
        assert same(means, results[0])


@every_stage
def test_a_dropped_round_leaves_no_trace(text: str) -> None:
    """Law 8: also one that was poisoned, and whatever the round after it sends."""

    def worker(transport: Transport) -> None:
        plain, disturbed = (averager(transport.channel(), text, tensors_of()) for _ in range(2))
        for number in range(1, 8):
            expected = run(plain, transport.rank, number)
            plain.keep()
            before = remembered(disturbed)
            run(disturbed, transport.rank, 50 + number)
            disturbed.bucket.flat.fill_(1.0)
            if transport.rank == 1:
                disturbed.bucket.flat[3] = torch.nan
            disturbed.run(Round(number=number, seed=9))
            assert not disturbed.finite
            assert same(remembered(disturbed), before)
            assert torch.equal(run(disturbed, transport.rank, number), expected)
            disturbed.keep()
        assert same(remembered(plain), remembered(disturbed))

    run_threads(3, worker, deadline_s=20)


@every_stage
def test_the_loss_scale_changes_nothing(text: str) -> None:
    def worker(transport: Transport) -> None:
        a, b = (averager(transport.channel(), text, tensors_of()) for _ in range(2))
        for number, scale in enumerate([1.0, 1024.0, 4.0, 1.0, 65536.0], 1):
            expected, scaled = run(a, transport.rank, number), run(b, transport.rank, number, scale)
            a.keep()
            b.keep()
            # A codec without memory sees scaled values, so that its rounding may differ.
            torch.testing.assert_close(scaled / scale, expected, rtol=1e-6, atol=1e-6)
        assert all(torch.allclose(x, y) for x, y in zip(remembered(a), remembered(b), strict=True))

    run_threads(2, worker, deadline_s=20)


# What sends alone, as its example has it; fp16 cuts what is scaled beyond its range, so that a scaler sees it.
SENDERS = listed("compression", Sender, ["dion:2", "strom:0.5,ratio=0.2", "threshold:0.5,ratio=0.2"])
ALONE = sorted({text.partition("+")[0] for text in SENDERS} - {"fp16"})


@pytest.mark.parametrize("text", ALONE)
def test_the_loss_scale_changes_nothing_where_no_stage_takes_it_off(text: str) -> None:
    """Also of what remembers, holds values to a threshold of its own, or gives back a size of its own."""

    def worker(transport: Transport) -> None:
        a, b = (averager(transport.channel(), text, tensors_of()) for _ in range(2))
        for number, scale in enumerate([1.0, 1024.0, 4.0, 1.0, 256.0], 1):
            expected, scaled = run(a, transport.rank, number), run(b, transport.rank, number, scale)
            a.keep()
            b.keep()
            torch.testing.assert_close(scaled / scale, expected, rtol=1e-4, atol=1e-5)

    run_threads(2, worker, deadline_s=20)


# These change what is sent: its sum is another than that of what was put in.
CHANGING = ("momentum", "lion", "signed", "ef21", "clip")
FED_BACK = [text for text in STAGED if "+ef" in text and not any(name in text for name in CHANGING)]


def test_some_stages_feed_back() -> None:
    assert len(FED_BACK) >= 5


@pytest.mark.parametrize("text", FED_BACK)
def test_nothing_is_lost(text: str) -> None:
    """Law 1 over many rounds: what has arrived and what is left over is what was put in."""

    def worker(transport: Transport) -> tuple[Tensor, Tensor, Tensor]:
        a = averager(transport, text, tensors_of())
        put_in, arrived = torch.zeros_like(a.bucket.flat), torch.zeros_like(a.bucket.flat)
        for number in range(1, 12):
            put_in += values(a.bucket.flat, transport.rank, number)
            arrived += run(a, transport.rank, number)
            a.keep()
        left = torch.cat([kinds["ef"].reshape(-1) for kinds in a.memory().values()])
        # What an average lacks, the gradient that explains it lacks 1/(1 − β) times.
        return put_in, arrived, left / (1 - 0.9) if "ema:0.9" in text else left

    put_in, arrived, left = (torch.stack(x).mean(0) for x in zip(*run_threads(3, worker), strict=True))
    torch.testing.assert_close(arrived + left, put_in, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", [text for text in STAGED if "ef21" in text or "diana" in text])
def test_differences_settle_on_a_gradient_that_stays(text: str) -> None:
    """Arithmetic behind EF21 and DIANA: the distance to each worker's own gradient shrinks to nothing."""

    def worker(transport: Transport) -> tuple[Tensor, Tensor, list[Tensor]]:
        a = averager(transport, text, tensors_of())
        mine = values(a.bucket.flat, transport.rank, 0)
        for number in range(1, 101):
            a.bucket.flat.copy_(mine)
            a.run(Round(number=number, seed=number))
            a.keep()
        kept = a.memory().values()
        own, mean = (torch.cat([kinds[k].reshape(-1) for kinds in kept]) for k in ("h", "mean h"))
        return mine, a.bucket.flat.clone(), [own, mean]

    results = run_threads(3, worker, deadline_s=20)
    expected = torch.stack([mine for mine, _, _ in results]).mean(0)
    for _, mean, (_, mean_h) in results:
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(mean_h, results[0][2][1])
    torch.testing.assert_close(torch.stack([h for _, _, (h, _) in results]).mean(0), results[0][2][1])


def test_momentum_of_workers_is_the_momentum_of_the_optimizer() -> None:
    """Momentum is linear: nothing held back, correcting it changes nothing."""
    corrected = train_all(3, "bsp/allreduce/none+momentum:0.9", steps=5)[0]
    expected = plain(3, steps=5, optimizer=sgd_with_momentum)
    for a, b in zip(corrected.parameters, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_momentum_is_as_the_paper_writes_it() -> None:
    """Algorithm 1 of 1712.01887 with both factor maskings, on one worker's own values."""

    def worker(transport: Transport) -> None:
        a = averager(transport, "topk:0.1+ef+momentum:0.9", {"w": torch.zeros(100)})
        u, v = torch.zeros(100), torch.zeros(100)
        for number in range(1, 10):
            gradient = values(u, transport.rank, number)
            u = 0.9 * u + gradient
            v = v + u
            sent = torch.zeros(100, dtype=torch.bool)
            sent[v.abs().topk(10).indices] = True
            run(a, transport.rank, number)
            a.keep()
            u, v = u.masked_fill(sent, 0), v.masked_fill(sent, 0)
            torch.testing.assert_close(a.memory()["w"]["momentum"], u)
            torch.testing.assert_close(a.memory()["w"]["ef"], v)

    run_threads(2, worker)


def test_clipping_is_by_tensor_and_by_the_root_of_workers() -> None:
    def worker(transport: Transport) -> dict[str, Tensor]:
        a = averager(transport, "none+clip:2", {"large": torch.zeros(50), "small": torch.zeros(4)})
        a.bucket.views["large"].fill_(3.0)
        a.bucket.views["small"].fill_(0.1)
        a.run(Round())
        return a.bucket.views

    for views in run_threads(4, worker):
        assert float(views["large"].norm()) == pytest.approx(1.0, rel=1e-5)
        assert torch.equal(views["small"], torch.full((4,), 0.1))


def test_small_and_flat_tensors_travel_dense() -> None:
    """They are averaged exactly, in buckets of their own, whatever becomes of the others."""

    def worker(transport: Transport) -> None:
        plan = "bsp/allreduce/topk:0.1+ef+min:64B,dims=2/sequential"
        with job(transport, plan) as j:
            j.step(0)
            kept = j.run.state_dict()["engine"]["memory"]
            shapes = {name: p.shape for name, p in j.model.named_parameters()}
            worth = {name for name, s in shapes.items() if len(s) >= 2 and s.numel() >= 16}
            assert set(kept) == worth < set(shapes)

    run_threads(2, worker)


def test_another_ratio_keeps_what_is_left_over() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp/allreduce/topk:0.1+ef+momentum:0.9+warmup:4") as j:
            for step in range(3):
                j.step(step)
            before = j.run.state_dict()["engine"]
            j.run.adopt(Plan.parse("bsp/allreduce/topk:0.3+ef+momentum:0.9/sequential"))
            after = j.run.state_dict()["engine"]
            assert before["rounds"] == after["rounds"] == 3
            for name, kinds in before["memory"].items():
                assert same(list(kinds.values()), list(after["memory"][name].values()))
            j.step(3)
            j.run.adopt(Plan.parse("bsp/allreduce/int8"))
            assert j.run.state_dict()["engine"]["memory"] == {}
            j.step(4)

    with pytest.warns(UserWarning, match="are dropped: they mean nothing under bsp/allreduce/int8"):
        run_threads(2, worker, deadline_s=20)


RECIPES = [member for member in MEMBERS if issubclass(member, Recipe)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_their_expressions(recipe: type[Recipe]) -> None:
    plan = Plan.parse(f"bsp/allreduce/{recipe.name}")
    assert plan.compression == parse_compression(recipe().expression)
    assert Plan.parse(str(plan)) == plan
    assert not any(isinstance(member, Recipe) for member in plan.compression)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("topk:0.1+clip:1+ef", "out of order"),
        ("topk:0.1+ef+ef21", "exclude each other"),
        ("topk:0.1+ef+ef", "twice"),
        ("topk:0.1+diana:0.1", "unbiased"),
        ("qsgd:1+ef21", "contractive"),
        ("none+ef", "lossless"),
        ("none+dense-every:3", "lossless"),
        ("int8+ef+warmup:5", "no ratio"),
        ("topk:0.1+warmup:0", "too few rounds"),
        ("topk:0.1+dense-every:1", "too few rounds"),
        ("topk:0.1+momentum:1", "share"),
        ("topk:0.1+clip:0", "norm above 0"),
        ("qsgd+diana:0", "rate"),
        ("topk:0.1+min", "bound"),
        ("dgc:ratio=2", "give one in"),
        ("momentum:0.9", "alone"),
    ],
)
def test_refusals_say_why_and_what_instead(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        Plan.parse(f"bsp/allreduce/{text}")
    _, _, nearest = str(caught.value).partition("Nearest legal: ")
    if nearest:
        Plan.parse(nearest.removesuffix("."))


TRAINED = [
    "topk:0.25+ef",
    "topk:0.25+ef21",
    "int8:rounding=stochastic+diana:0.3",
    "none+momentum:0.5",
    "topk:0.25+ef+momentum:0.5",
    "topk:0.25+ef+clip:20",
    "topk:0.1+ef+warmup:40",
    "int4+ef+dense-first:10",
    "topk:0.1+ef+dense-every:10",
    "topk:0.25+ef+min:dims=2",
    "blocktopk:0.25+ef",
    "threshold:0.5,ratio=0.25+ef",
    "randomk:0.25+ef",
    "int4+loco",
    "wangni:0.5",
    "strom:0.5,ratio=0.5+ef",
    "sbc:0.25+ef",
    "dct:8+ef",
    "layertopk:0.25,by=norm+ef",
    "sketch:0.1,width=0.2,rows=1+ef",
    "topk:0.5+adacomp:4",
    "topk:0.5+variance:1",
    *(recipe.name for recipe in RECIPES),
]


@functools.cache
def _problem(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(64, 10, generator=generator)
    return x, x @ torch.linspace(-1, 1, 10).unsqueeze(1) + 0.5


@pytest.mark.parametrize("compression", TRAINED)
def test_a_model_learns(compression: str) -> None:
    def worker(transport: Transport) -> float:
        torch.manual_seed(0)
        model = nn.Linear(10, 1)
        x, y = _problem(transport.rank)
        with job(transport, f"bsp/allreduce/{compression}", model=model) as j:
            for _ in range(80):
                j.optimizer.zero_grad()
                loss = (model(x) - y).square().mean()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                j.optimizer.step()
        with torch.no_grad():
            return float((model(x) - y).square().mean())

    start = float((_problem(0)[1]).square().mean())
    assert max(run_threads(2, worker, deadline_s=20)) < 0.05 * start


@every_stage
def test_what_is_held_is_as_many_copies_as_are_declared(text: str) -> None:
    (layout,) = plan_layout({"x": torch.zeros(40, 5)}, [[0]])
    for stage in parse_compression(text)[1:]:
        assert isinstance(stage, Stage)
        memory = stage.memory(layout, 4)
        held = vars(memory).values() if memory is not None else ()
        tensors = [tensor for tensor in held if isinstance(tensor, Tensor)]
        assert sum(tensor.numel() for tensor in tensors) == stage.copies * layout.numel
