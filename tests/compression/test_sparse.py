"""What the papers of sparse methods say, on values small enough to follow."""

import math

import pytest
import torch
from torch import Tensor

from tests.laws.test_codecs import codec_of, normal, round_trip
from tests.laws.test_stages import averager, values
from tightwire.architecture.round import Round
from tightwire.averaging.layertopk import shares
from tightwire.compression import SBC, RandomK, Threshold
from tightwire.errors import PlanError, TensorError
from tightwire.plan import Plan
from tightwire.transport import Transport, run_threads


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("blocktopk:0", "give one in"),
        ("blocktopk:0.1,block=100", "multiple of 64"),
        ("threshold:0", "above 0"),
        ("threshold:inf", "above 0"),
        ("threshold:1,ratio=2", "give one in"),
        ("randomk:nan", "give one in"),
        ("wangni:0", "give one in"),
        ("strom:-1", "above 0"),
        ("sbc:1.1", "give one in"),
        ("dct:0", "1 to 64"),
        ("dct:1,chunk=100", "64, 128 or 256"),
        ("sketch:0.1,rows=2", "1, 3 or 5"),
        ("sketch:0.1,width=0", "width"),
        ("layertopk:0.1,by=luck", "size or norm"),
        ("topk:0.1+adacomp:0", "at least 1"),
        ("topk:0.1+variance:0", "alpha above 0"),
        ("topk:0.1+ef:0", "share in"),
        ("int8+adacomp", "needs a sparse codec"),
        ("topk:0.1+adacomp+momentum:0.9", "keeps more back"),
        ("topk:0.1+ef+adacomp", "exclude each other"),
        ("threshold:1+ef21", "contractive"),
        ("blocktopk:0.1+diana:0.1", "unbiased"),
    ],
)
def test_refusals_say_why_and_what_instead(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        Plan.parse(f"bsp/allreduce/{text}")
    _, _, nearest = str(caught.value).partition("Nearest legal: ")
    if nearest:
        Plan.parse(nearest.removesuffix("."))


def test_a_threshold_sends_what_reaches_it_and_the_largest_where_room_is_short() -> None:
    x = torch.tensor([0.5, -3.0, 1.0, 2.0, -0.9, 4.0, 0.0, 1.5])
    assert round_trip(Threshold(1.0, ratio=1), x)[1].tolist() == [0, -3, 1, 2, 0, 4, 0, 1.5]
    assert round_trip(Threshold(1.0, ratio=0.25), x)[1].tolist() == [0, -3, 0, 0, 0, 4, 0, 0]


def test_strom_sends_its_threshold() -> None:
    x = torch.tensor([0.5, -3.0, 1.0, 0.0])
    _, decoded, leftover = round_trip(codec_of("strom:1,ratio=1"), x)
    assert decoded.tolist() == [0, -1, 1, 0]
    assert leftover.tolist() == [0.5, -2, 0, 0]


def test_sbc_sends_the_side_with_the_larger_mean() -> None:
    x = torch.tensor([3.0, -5.0, 1.0, 2.0, -1.0, 0.0])
    assert round_trip(SBC(1 / 3), x)[1].tolist() == [0, -3, 0, 0, -3, 0]
    assert round_trip(SBC(1 / 3), -x)[1].tolist() == [0, 3, 0, 0, 3, 0]
    assert not round_trip(SBC(0.5), torch.zeros(6))[1].any()


def test_all_waves_are_the_input() -> None:
    x = normal(1000)
    decoded = round_trip(codec_of("dct:64"), x)[1]
    torch.testing.assert_close(decoded, x, rtol=1e-5, atol=1e-5)
    wave = torch.cos(math.pi * (torch.arange(64) + 0.5) * 5 / 64)
    torch.testing.assert_close(round_trip(codec_of("dct:1"), wave)[1], wave, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["blocktopk:0.1", "threshold:1", "strom:1", "sbc:0.1", "dct", "randomk:0.1", "wangni:0.1"]
)
def test_messages_that_cannot_be_change_nothing(text: str) -> None:
    codec, out = codec_of(text), torch.ones(1000)
    message = torch.full((codec.wire_bytes(1000),), 0xFE, dtype=torch.uint8)
    with pytest.raises(TensorError, match="nothing was applied"):
        codec.decode(message, out)
    assert torch.equal(out, torch.ones(1000))


def test_random_places_survive_any_sum() -> None:
    """A backend may add messages as they are, thousands of them, in half precision."""
    codec, x = RandomK(0.1), torch.ones(100, dtype=torch.bfloat16)
    message, decoded, _ = round_trip(codec, x, seed=0xDEADBEEF)
    total = torch.zeros_like(message.view(torch.bfloat16))
    for _ in range(1000):
        total += message.view(torch.bfloat16)
    out = torch.empty_like(x)
    codec.decode(total.view(torch.uint8), out)
    assert torch.equal(out != 0, decoded != 0)


def test_shares_keep_to_the_budget() -> None:
    assert sum(shares([0.0, 0.0], [3, 5], 4)) == 4
    assert shares([math.nan, 1.0], [10, 10], 6) == [3, 3]
    for masses in ([1.0, 1e9, 0.0], [1e-300, 1.0, 1.0], [1.0, 2.0, 4.0]):
        for budget in range(3, 31):
            found = shares(masses, [10, 10, 10], budget)
            assert sum(found) == budget
            assert all(1 <= count <= 10 for count in found)


def _follow(text: str, check: object) -> None:
    def worker(transport: Transport) -> None:
        a = averager(transport, text, {"w": torch.zeros(100)})
        for number in range(1, 10):
            gradient = values(torch.zeros(100), transport.rank, number)
            a.bucket.flat.copy_(gradient)
            a.run(Round(number=number, seed=number))
            a.keep()
            check(transport.rank, gradient, a.memory()["w"])  # type: ignore[operator]

    run_threads(2, worker, deadline_s=20)


def test_adacomp_is_as_the_paper_writes_it() -> None:
    residue = {rank: torch.zeros(100) for rank in range(2)}

    def check(rank: int, gradient: Tensor, memory: dict[str, Tensor]) -> None:
        total = residue[rank] + gradient
        ahead = total + gradient
        largest = total.view(10, 10).abs().amax(1, keepdim=True).expand(10, 10).flatten()
        residue[rank] = total.masked_fill(ahead.abs() >= largest, 0)
        torch.testing.assert_close(memory["adacomp"], residue[rank])

    _follow("topk:1+adacomp:10", check)


def test_variance_is_as_the_paper_writes_it() -> None:
    kept = {rank: (torch.zeros(100), torch.zeros(100)) for rank in range(2)}

    def check(rank: int, gradient: Tensor, memory: dict[str, Tensor]) -> None:
        r, v = kept[rank]
        r, v = r + gradient, v + gradient.square()
        sent = r.square() > 1.5 * v
        kept[rank] = (r.masked_fill(sent, 0), (0.9 * v).masked_fill(sent, 0))
        torch.testing.assert_close(memory["variance"], kept[rank][0])
        torch.testing.assert_close(memory["variance v"], kept[rank][1])

    _follow("topk:1+variance:1.5,zeta=0.9", check)
