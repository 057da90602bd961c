"""Law 6: every program is right for every number of ranks, and a broken one is caught."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.members import told
from tightwire.architecture import PROGRAMS, Program, build, check
from tightwire.architecture.allreduce.builders import COLLECTIVES, legal_shapes, uneven_hierarchical
from tightwire.architecture.allreduce.traffic import predict_bytes
from tightwire.compression import Identity
from tightwire.errors import ProgramError
from tightwire.transport import native_bytes

RANKS = range(1, 18)


@pytest.mark.parametrize("name", [*PROGRAMS, *COLLECTIVES])
def test_reaches_its_goal(name: str) -> None:
    for n in RANKS:
        with told(n):
            program = build(name, n)
            check(program)
            assert program.num_ranks == n


@pytest.mark.parametrize("name", PROGRAMS)
def test_names_every_byte_once(name: str) -> None:
    for n in RANKS:
        program = build(name, n)
        sizes = program.chunk_sizes(1_000_003)
        sent = sum(program.bytes_sent(rank, sizes) for rank in range(n))
        assert sent == sum(sizes[t.chunk] for t in program.transfers), n
        assert sum(len(program.receives(rank)) for rank in range(n)) == len(program.transfers), n


def test_native_is_counted_as_a_ring() -> None:
    for n, numel in itertools.product(RANKS, (0, 1, 7, 4097)):
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


@pytest.mark.parametrize("name", [*PROGRAMS, *COLLECTIVES])
def test_cost_is_the_closed_form(name: str) -> None:
    n, num_bytes, alpha_s = 8, 19200, 1e-3
    beta_s = num_bytes / 1e6
    program = build(name, n)
    chunk = num_bytes if program.gathers else num_bytes // program.num_chunks
    share = (n - 1) / n
    closed = {
        "ring": 2 * (n - 1) * alpha_s + 2 * share * beta_s,
        "native": 2 * (n - 1) * alpha_s + 2 * share * beta_s,
        "recursive-doubling": 3 * (alpha_s + beta_s),
        "halving-doubling": 6 * alpha_s + 2 * share * beta_s,
        "tree": 8 * alpha_s + 3 * beta_s,
        "double-tree": 10 * alpha_s + 2 * beta_s,
        "torus": (2 * 1 + 2 * 3) * alpha_s + 2 * share * beta_s,
        "hierarchical": (2 * 1 + 2 * 3) * alpha_s + 2 * share * beta_s,
        "blueconnect": 6 * alpha_s + 2 * share * beta_s,
        "direct": 2 * (n - 1) * alpha_s + 2 * share * beta_s,
        "allgather": (n - 1) * (alpha_s + beta_s),
        "synthesised": 2 * (n - 1) * alpha_s + 2 * share * beta_s,
        "reduce-scatter": (n - 1) * alpha_s + share * beta_s,
        "all-gather": (n - 1) * alpha_s + share * beta_s,
        "broadcast": 4 * alpha_s + 2 * beta_s,
        "reduce": 4 * alpha_s + 2 * beta_s,
        "all-to-all": (n - 1) * (alpha_s + beta_s / n**2),
    }
    assert program.seconds([chunk] * program.num_chunks, alpha_s, 1e6) == pytest.approx(closed[name])


def test_boxes_of_every_shape_are_right() -> None:
    for n, sides in itertools.product(RANKS, (2, 3)):
        for shape in legal_shapes(n, sides):
            check(build("blueconnect", n, shape))
            check(build("hierarchical", n, shape))


@pytest.mark.parametrize(
    "nodes", [[[0, 1], [2, 3]], [[0, 2, 3], [1, 4]], [[0], [1, 2, 3], [4, 5]], [[2, 0, 1]]]
)
def test_nodes_may_be_uneven_and_scattered(nodes: list[list[int]]) -> None:
    check(uneven_hierarchical(nodes))


def test_shapes_that_do_not_fit_are_told_those_that_do() -> None:
    with pytest.raises(
        ProgramError, match=r"torus of shape 5x2 has 10 ranks, and there are 12; legal.*2x6, 3x4"
    ):
        build("torus", 12, (5, 2))
    with pytest.raises(ProgramError, match="torus has two sides, and 3"):
        build("torus", 12, (3, 2, 2))
    with pytest.raises(ProgramError, match="hierarchical has two levels or more"):
        build("hierarchical", 12, (12,))
    with pytest.raises(
        ProgramError, match=r"ring has no shape, .* torus, hierarchical, blueconnect have one"
    ):
        build("ring", 4, (2, 2))
    with pytest.raises(ProgramError, match=r"hold each of 3 ranks once"):
        uneven_hierarchical([[0, 1], [1]])


def test_lines_are_equally_busy_in_a_double_tree() -> None:
    """A rank is inner in one tree at most, but for one rank where n is odd."""
    for n in RANKS:
        inner = [
            {t.dst for t in build("double-tree", n).transfers if t.op == "reduce" and t.chunk == tree}
            for tree in (0, 1)
        ]
        assert len(inner[0] & inner[1]) <= n % 2, n
