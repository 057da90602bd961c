"""Law 6: every program is right for every number of ranks, and a broken one is caught."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire.collectives import PROGRAMS, Program, Transfer, build, check
from tightwire.errors import ProgramError

RANKS = range(1, 18)


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_reaches_its_goal(name: str, n: int) -> None:
    program = build(name, n)
    check(program)
    assert program.num_ranks == n


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_names_every_byte_once(name: str, n: int) -> None:
    program = build(name, n)
    sizes = program.chunk_sizes(1_000_003)
    sent = sum(program.bytes_sent(rank, sizes) for rank in range(n))
    assert sent == sum(sizes[t.chunk] for t in program.transfers)
    assert sum(len(program.receives(rank)) for rank in range(n)) == len(program.transfers)


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, Program]:
    """A program with one transfer dropped, doubled or redirected."""
    program = build(draw(st.sampled_from(sorted(PROGRAMS))), draw(st.integers(2, 9)))
    transfers = list(program.transfers)
    i = draw(st.integers(0, len(transfers) - 1))
    fault = draw(
        st.sampled_from(["drop", "double at once", "double later", "redirect", "other chunk", "flip"])
    )
    t = transfers[i]
    if fault == "drop":
        transfers.pop(i)
    elif fault == "double at once":
        transfers.insert(i, t)
    elif fault == "double later":
        transfers.append(dataclasses.replace(t, step=transfers[-1].step + 1))
    elif fault == "redirect":
        others = [r for r in range(program.num_ranks + 1) if r != t.dst]
        transfers[i] = dataclasses.replace(t, dst=draw(st.sampled_from(others)))
    elif fault == "other chunk":
        others = [c for c in range(program.num_chunks + 1) if c != t.chunk]
        transfers[i] = dataclasses.replace(t, chunk=draw(st.sampled_from(others)))
    else:
        transfers[i] = dataclasses.replace(t, op="copy" if t.op == "reduce" else "reduce")
    return fault, dataclasses.replace(program, transfers=tuple(transfers))


def outcome(program: Program) -> bool:
    """Runs `program` on integers and says whether every rank ends with all: another judge."""
    n = program.num_ranks
    own = [1 << 8 * rank for rank in range(n)]
    holds = [
        {c: own[rank] for c in range(program.num_chunks) if not program.gathers or c == rank}
        for rank in range(n)
    ]
    for _, transfers in program.steps():
        moved = [(t, holds[t.src].get(t.chunk, 0)) for t in transfers]
        for t, value in moved:
            holds[t.dst][t.chunk] = value + (holds[t.dst].get(t.chunk, 0) if t.op == "reduce" else 0)
    wanted = [own[c] if program.gathers else sum(own) for c in range(program.num_chunks)]
    return all([hold.get(c) for c in range(program.num_chunks)] == wanted for hold in holds)


@given(broken())
def test_a_broken_program_is_caught(case: tuple[str, Program]) -> None:
    """It is refused, unless it still works, as after some redirections."""
    fault, program = case
    try:
        check(program)
    except ProgramError:
        return
    assert outcome(program)
    assert fault not in ("drop", "double at once", "double later")


def test_ranks_that_add_in_different_orders_are_caught() -> None:
    """Three ranks pass values around a ring and each adds what arrives: right sums, unequal bits."""
    step0 = [Transfer(0, r, (r + 1) % 3, 0, "reduce") for r in range(3)]
    program = Program("sloppy", 3, 3, tuple(step0))
    with pytest.raises(ProgramError, match="without the contribution"):
        check(program)
    orders = [
        Transfer(0, 1, 0, 0, "reduce"),  # rank 0: 0+1
        Transfer(1, 2, 0, 0, "reduce"),  # rank 0: (0+1)+2
        Transfer(1, 0, 1, 0, "copy"),  # rank 1: 0+1
        Transfer(2, 0, 2, 0, "copy"),  # rank 2: everything
        Transfer(2, 0, 1, 0, "copy"),
    ]
    check(Program("fine", 3, 1, tuple(orders)))
    four = [
        Transfer(0, 1, 0, 0, "reduce"),  # 0: 0+1
        Transfer(0, 3, 2, 0, "reduce"),  # 2: 2+3
        Transfer(1, 0, 2, 0, "reduce"),  # 2: (2+3)+(0+1)
        Transfer(1, 2, 0, 0, "reduce"),  # 0: the same
        Transfer(2, 0, 1, 0, "copy"),
        Transfer(2, 2, 3, 0, "copy"),
    ]
    check(Program("fine", 4, 1, tuple(four)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_cost_is_the_closed_form(name: str) -> None:
    n, bytes_per_s, latency_s = 8, 1e6, 1e-3
    program = build(name, n)
    chunk = 8000 if program.gathers else 8000 // program.num_chunks
    closed = {
        "ring": 2 * (n - 1) * latency_s + 2 * (n - 1) / n * 8000 / bytes_per_s,
        "native": 2 * (n - 1) * latency_s + 2 * (n - 1) / n * 8000 / bytes_per_s,
        "recursive-doubling": 3 * (latency_s + 8000 / bytes_per_s),
        "allgather": (n - 1) * (latency_s + 8000 / bytes_per_s),
    }
    assert program.seconds([chunk] * program.num_chunks, latency_s, bytes_per_s) == pytest.approx(
        closed[name]
    )
