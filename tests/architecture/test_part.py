import pytest

from tightwire.architecture import PROGRAMS, build
from tightwire.architecture.allreduce.part import Part, part_of
from tightwire.architecture.allreduce.program import Program, Transfer
from tightwire.architecture.allreduce.traffic import cut
from tightwire.errors import ProgramError


def parts(name: str, n: int) -> list[Part]:
    program = build(name, n)
    pieces = cut(program.chunk_sizes(50_000), 4, 8192)
    return [part_of(program, rank, pieces, tag=3) for rank in range(n)]


def sends(part: Part) -> list[tuple[int, int, int]]:
    leaving = [*part.first, *(send for receive in part.receives for send in receive.then)]
    return [(send.dst, send.tag, send.piece) for send in leaving]


@pytest.mark.parametrize("n", [2, 3, 4, 7])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_message_has_two_ends_and_a_tag_of_its_own(name: str, n: int) -> None:
    everyone = parts(name, n)
    sent = [(src, *send) for src, part in enumerate(everyone) for send in sends(part)]
    received = [(r.src, dst, r.tag, r.piece) for dst, part in enumerate(everyone) for r in part.receives]
    assert sorted(sent) == sorted(received)
    assert len({message[:3] for message in sent}) == len(sent)
    assert all(0 <= tag < 1 << 31 for _, _, tag, _ in sent)


def test_equal_losses_are_shared() -> None:
    """In recursive doubling over 4, two ranks hold each sum of two; each charges half of its loss."""
    shares = [
        sorted(
            1 / send.encode.makers
            for send in (*part.first, *(s for r in part.receives for s in r.then))
            if send.encode
        )
        for part in parts("recursive-doubling", 4)
    ]
    pieces = len(cut((50_000,), 4, 8192).sizes)
    assert shares == [[0.5] * pieces + [1.0] * pieces] * 4


def test_a_loss_after_the_division_counts_for_all() -> None:
    for part in parts("ring", 5):
        assert {(e.makers, e.complete) for r in part.receives if (e := r.encode)} == {(1, True)}


def test_both_sides_add_in_one_order() -> None:
    orders = [[receive.own_first for receive in part.receives] for part in parts("recursive-doubling", 2)]
    assert orders[0] == [not own_first for own_first in orders[1]]


def test_tags_and_pieces_have_bounds() -> None:
    program = build("ring", 2)
    with pytest.raises(ProgramError, match=r"tag 32768 is outside"):
        part_of(program, 0, cut((10, 10), 4, 8192), tag=1 << 15)
    with pytest.raises(ProgramError, match="raise piece_bytes"):
        part_of(program, 0, cut((1 << 28, 1 << 28), 4, 4096), tag=0)


def test_unfinished_sums_are_not_copied() -> None:
    transfers = (
        Transfer(0, 0, 1, 0, "reduce"),
        Transfer(1, 1, 0, 0, "copy"),
        Transfer(2, 2, 1, 0, "reduce"),
        Transfer(3, 1, 0, 0, "copy"),
        Transfer(4, 1, 2, 0, "copy"),
    )
    program = Program("early", 3, 1, transfers)
    with pytest.raises(ProgramError, match="copies an unfinished sum at step 1"):
        part_of(program, 0, cut((10,), 4, 8192), tag=0)
