"""Law 6: every program is right for every number of ranks, and a broken one is caught."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire.collectives import PROGRAMS, Program, build, check
from tightwire.collectives.traffic import predict_bytes
from tightwire.compression import Identity
from tightwire.errors import ProgramError
from tightwire.transport import native_bytes

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


@pytest.mark.parametrize("n", RANKS)
def test_native_is_counted_as_a_ring(n: int) -> None:
    for numel in (0, 1, 7, 4097):
        sizes = build("ring", n).chunk_sizes(numel)
        for rank in range(n):
            ring_bytes = build("ring", n).bytes_sent(rank, sizes) * 4
            assert native_bytes(numel, 4, n, rank) == ring_bytes
            assert predict_bytes(build("native", n), Identity(), numel, 4, rank) == ring_bytes


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
