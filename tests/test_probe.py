"""Fits find what they were made from; probing a slow world finds its rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightwire.cluster import Cluster
from tightwire.cluster.fit import MAX_RESIDUAL
from tightwire.errors import ProgramError
from tightwire.probe import ProbePoint, fit, probe, tournament
from tightwire.transport import Single, run_threads


@given(alpha_s=st.floats(0, 1e-2), beta=st.floats(1e-12, 1e-6))
def test_a_line_is_found_again(alpha_s: float, beta: float) -> None:
    sizes = (1_000, 10_000, 100_000, 10_000_000)
    found = fit("ring", [ProbePoint(sent_bytes=n, seconds=alpha_s + beta * n) for n in sizes])
    assert found.residual < 1e-4
    assert found.alpha_s == pytest.approx(alpha_s, rel=1e-3, abs=1e-3 * beta * sizes[0])
    assert found.beta_s_per_byte == pytest.approx(beta, rel=1e-3, abs=1e-3 * alpha_s / sizes[-1])


def test_neither_constant_is_negative() -> None:
    burst = fit("ring", [ProbePoint(sent_bytes=n, seconds=n * 1e-8 - 5e-5) for n in (10_000, 10**5, 10**6)])
    assert burst.alpha_s == 0.0
    falling = fit("ring", [ProbePoint(sent_bytes=n, seconds=1e-3 - n * 1e-11) for n in (10**4, 10**6)])
    assert falling.beta_s_per_byte == 0.0
    assert fit("ring", [ProbePoint(sent_bytes=5, seconds=1e-3)] * 3).alpha_s == pytest.approx(1e-3)


def test_times_that_make_no_sense_are_a_bad_fit_and_no_end() -> None:
    """A machine that stood still in one sample must not end the training that waits for the probe."""
    still = [ProbePoint(sent_bytes=n, seconds=s) for n, s in ((10**3, 2.0), (10**6, 5e-4))]
    assert fit("native", still).residual == MAX_RESIDUAL


@pytest.mark.parametrize("size", range(2, 10))
def test_in_a_tournament_everybody_meets_everybody_once(size: int) -> None:
    rounds = tournament(size)
    met = [pair for pairs in rounds for pair in pairs]
    assert len(met) == len(set(met)) == size * (size - 1) // 2
    for pairs in rounds:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))


@pytest.mark.parametrize("workers", [2, 3])
def test_all_ranks_find_the_same(workers: int) -> None:
    told: list[float] = []
    clusters = run_threads(
        workers,
        lambda transport: probe(transport, budget_s=0.3, on_progress=lambda share, _: told.append(share)),
    )
    assert all(cluster == clusters[0] for cluster in clusters)
    assert clusters[0].workers == workers
    assert {f.program for f in clusters[0].fits} == {"native", "ring", "recursive-doubling", "allgather"}
    assert len(clusters[0].pairs) == workers * (workers - 1) // 2
    assert 0.0 in told
    assert max(told) < 1.0


def test_a_world_of_one_has_a_wire_that_never_matters() -> None:
    assert isinstance(probe(Single()), Cluster)


def test_an_unknown_program_is_refused() -> None:
    with pytest.raises(ProgramError, match="rnig"):
        run_threads(2, lambda transport: probe(transport, programs=("rnig",)))
