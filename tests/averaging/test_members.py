import pytest

from tightwire.averaging import PowerSGD
from tightwire.averaging._doubling import doubling_moves
from tightwire.catalogue import parse_compression
from tightwire.errors import PlanError
from tightwire.plan import Plan


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("powersgd:0", "at least 1"),
        ("powersgd", "rank"),
        ("powersgd:4,factors=int3", "give full, int8, int4"),
        ("atomo:0", "at least 1"),
        ("gtopk:0", "give one in"),
        ("oktopk:1.5", "give one in"),
        ("sparcml:nan", "give one in"),
        ("doublesqueeze:none", "give one codec that compresses"),
        ("doublesqueeze:powersgd:2", "give one codec that compresses"),
        ("doublesqueeze:topk:0", "give one in"),
        ("powersgd:2+int8", "goes alone"),
        ("int8+gtopk:0.1+ef", "more than one"),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Plan.parse(f"bsp/allreduce/{text}")


@pytest.mark.parametrize("text", ["powersgd:4+ef", "gtopk:0.01+ef", "atomo:3", "doublesqueeze+ef"])
def test_a_program_of_ones_own_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(PlanError, match="brings an exchange of its own") as caught:
        Plan.parse(f"bsp/allreduce:ring/{text}")
    assert str(caught.value).endswith(f"Nearest legal: bsp/allreduce/{text}.")


@pytest.mark.parametrize(
    "text", ["doublesqueeze:topk:0.01", "doublesqueeze:onebit", "powersgd:4", "oktopk:0.1"]
)
def test_text_round_trips(text: str) -> None:
    (reduction,) = parse_compression(text)
    assert str(reduction) == text


def test_powersgd_sends_what_its_paper_says() -> None:
    """Two rings of rank·rows and rank·columns elements, in float32."""
    method, shape = PowerSGD(4), (8192, 16384)
    ring = 2 * 3 / 4 * 4 * 4 * sum(shape)
    assert method.bytes_sent([shape], 4, 4, 0) == method.bytes_sent([shape], 2, 4, 0) == ring


def test_factors_in_four_bits_are_an_eighth() -> None:
    whole, rounded = (PowerSGD(16, f).bytes_sent([(4096, 4096)], 4, 4, 0) for f in ("full", "int4"))
    assert whole / rounded == pytest.approx(8, rel=0.04)


@pytest.mark.parametrize("n", range(1, 18))
def test_butterflies_meet_and_count_everybody(n: int) -> None:
    moves = [doubling_moves(n, rank) for rank in range(n)]
    for rank, own in enumerate(moves):
        total = 1
        for move in own:
            assert move.sent in (0, total)
            total = move.received if move.replaces else total + move.received
        assert total == n
        for peer in {move.peer for move in own}:
            sent = [move.sent for move in own if move.peer == peer and move.sent]
            assert sent == [move.received for move in moves[peer] if move.peer == rank and move.received]
