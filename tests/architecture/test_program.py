import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire.architecture import build, check
from tightwire.architecture.allreduce.checker import ALL_GATHER
from tightwire.architecture.allreduce.program import Program, Transfer, split
from tightwire.architecture.allreduce.traffic import cut
from tightwire.errors import ProgramError


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 300))
def test_split_loses_nothing(numel: int, parts: int, multiple: int) -> None:
    sizes = split(numel, parts, multiple)
    assert len(sizes) == parts
    assert sum(sizes) == numel
    assert min(sizes) >= 0
    assert all(size % multiple == 0 for size in sizes[:-1])
    assert max(sizes) - min(sizes) <= 2 * multiple


@given(st.lists(st.integers(0, 50_000), max_size=8), st.sampled_from([1, 2, 4, 8]), st.integers(1, 100_000))
def test_pieces_are_the_chunks(chunks: list[int], itemsize: int, piece_bytes: int) -> None:
    pieces = cut(chunks, itemsize, piece_bytes)
    assert [sum(pieces.sizes[piece] for piece in of) for of in pieces.of_chunk] == chunks
    assert all(size > 0 for size in pieces.sizes)


def test_unknown_programs_and_empty_worlds_are_refused() -> None:
    with pytest.raises(ProgramError, match="no known program; known: allgather"):
        build("rong", 4)
    with pytest.raises(ProgramError, match="at least 1"):
        build("ring", 0)


@pytest.mark.parametrize(
    ("transfers", "seen"),
    [
        (
            [Transfer(0, 0, 0, 0, "copy")],
            "at step 0, the copy of chunk 0 from rank 0 to rank 0 is sent by a rank to itself",
        ),
        ([Transfer(0, 0, 1, 1, "copy")], "is not held by its sender"),
        ([Transfer(0, 0, 1, 0, "copy"), Transfer(0, 0, 1, 0, "copy")], "second write"),
        ([Transfer(0, 0, 1, 0, "reduce")], "is added to nothing"),
        ([Transfer(0, 0, 2, 0, "copy")], "is outside the program's 2 ranks and 2 chunks"),
        ([Transfer(0, 0, 1, 0, "copy")], "rank 0 ends chunk 1 without the contribution of rank 1"),
        ([Transfer(1, 0, 1, 0, "copy"), Transfer(0, 1, 0, 1, "copy")], "comes after a later step"),
        (
            [Transfer(0, 0, 1, 0, "copy"), Transfer(1, 0, 1, 0, "copy")],
            "copied to a rank that has it already",
        ),
        ([Transfer(0, 0, 1, 0, "copy", 0.5)], "has weight 0.5"),
    ],
)
def test_the_first_violation_is_named(transfers: list[Transfer], seen: str) -> None:
    with pytest.raises(ProgramError, match=seen):
        check(Program("wrong", 2, 2, tuple(transfers), gathers=True), ALL_GATHER)


def test_a_contribution_added_twice_is_named() -> None:
    transfers = (Transfer(0, 0, 1, 0, "reduce"), Transfer(1, 0, 1, 0, "reduce"))
    with pytest.raises(ProgramError, match=r"at step 1, .* adds the contribution of rank 0 a second time"):
        check(Program("wrong", 2, 1, transfers))


def test_sums_in_different_orders_are_named() -> None:
    transfers = (
        Transfer(0, 1, 0, 0, "reduce"),
        Transfer(1, 0, 2, 0, "reduce"),  # 2 + (0 + 1)
        Transfer(1, 2, 1, 0, "reduce"),  # 1 + 2
        Transfer(2, 2, 0, 0, "copy"),
        Transfer(3, 0, 1, 0, "copy"),
    )
    check(Program("fine", 3, 1, transfers))
    unequal = (
        Transfer(0, 0, 1, 0, "reduce"),  # 1: 0+1
        Transfer(0, 2, 3, 0, "reduce"),  # 3: 2+3
        Transfer(0, 1, 2, 0, "reduce"),  # 2: 1+2
        Transfer(0, 3, 0, 0, "reduce"),  # 0: 3+0
        Transfer(1, 1, 3, 0, "reduce"),  # 3: (0+1)+(2+3)
        Transfer(1, 3, 1, 0, "reduce"),  # 1: the same
        Transfer(1, 0, 2, 0, "reduce"),  # 2: (3+0)+(1+2)
        Transfer(1, 2, 0, 0, "reduce"),
    )
    with pytest.raises(ProgramError, match="rank 1 adds chunk 0 in another order"):
        check(Program("sloppy", 4, 1, unequal))
