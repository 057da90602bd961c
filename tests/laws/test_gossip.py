"""Laws of gossip: graphs mix as they say, programs carry that out, and every method makes its paper's steps."""

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.runtime.training import Net, adam, assert_close, job, momentum, same, train, train_all, values
from tightwire._attach import attach
from tightwire.architecture.gossip import (
    GRAPHS,
    METHODS,
    Gossip,
    Graph,
    Mixing,
    build_graph,
    check_round,
    connected,
    round_program,
)
from tightwire.architecture.gossip.graphs import bandwidth
from tightwire.architecture.gossip.header import round_bytes
from tightwire.errors import MismatchError, PeerError, PlanError, ProgramError
from tightwire.plan import Plan
from tightwire.transport import Single, Transport, run_threads

Matrix = NDArray[np.float64]
RANKS = range(2, 18)
CASES = [
    (name, n) for name in GRAPHS for n in RANKS if name != "torus" or n in (4, 6, 8, 9, 10, 12, 14, 15, 16)
]
COMPRESSIONS = (
    "none",
    "choco:topk=0.2",
    "choco:int4",
    "choco:none",
    "dcd:int8",
    "ecd:fp16",
    "deepsqueeze:topk=0.2",
)
PLANS = [
    *(f"bsp/gossip:{graph}" for graph in GRAPHS if graph != "torus"),
    "bsp/gossip:star,method=sgp",
    "bsp/gossip:sgp",
    "bsp/gossip:d2/none/fusion:64",
    "local:2/gossip:random-matching",
    "local:3/gossip:exponential/choco:topk=0.2",
    "bsp/gossip:matcha,base=ring,budget=0.7/deepsqueeze:int8",
    *(f"bsp/gossip:exponential/{compression}/fusion:64" for compression in COMPRESSIONS),
    "bsp/gossip:expander/topk:0.2+choco:gamma=0.3+min:64B,dims=2",
    "bsp/gossip/int8+choco+dense-first:2",
    "bsp/gossip:bandwidth/saps:0.2",
    "diloco:2,outer_momentum=0.5/gossip:noloco",
    "local:2/gossip:exponential/saps:0.3/fusion:64",
]


@pytest.mark.parametrize(("name", "n"), CASES)
def test_every_round_keeps_the_mean_and_its_program_is_the_matrix(name: str, n: int) -> None:
    graph = build_graph(name, n)
    for number in range(1, min(graph.period, 12) + 1):
        mixing = graph.at(number)
        assert mixing.is_doubly_stochastic
        check_round(round_program(mixing), mixing)
        dense = mixing.dense()
        np.testing.assert_allclose(dense.sum(0), 1)
        np.testing.assert_allclose(dense.sum(1), 1)
        np.testing.assert_allclose(
            [mixing.pushed.weight(i, j) for i in range(n) for j in range(n) if i != j],
            [mixing.push_share(j) * (dense[i, j] > 0) for i in range(n) for j in range(n) if i != j],
        )
    recipe = GRAPHS[name]
    assert graph.is_static == recipe.is_static or graph.period == 1
    assert graph.is_symmetric or not recipe.is_symmetric


@pytest.mark.parametrize(
    ("name", "n"), [("one-peer-exponential", 8), ("one-peer-exponential", 16), ("complete", 5)]
)
def test_a_period_of_these_is_the_exact_mean(name: str, n: int) -> None:
    np.testing.assert_allclose(build_graph(name, n).product(), np.full((n, n), 1 / n), atol=1e-12)


def test_gaps_are_those_of_the_literature() -> None:
    for n in (4, 8, 15):
        closed = 1 - (1 + 2 * np.cos(2 * np.pi / n)) / 3
        assert build_graph("ring", n).at(1).spectral_gap == pytest.approx(closed)
        assert build_graph("star", n).at(1).spectral_gap == pytest.approx(1 / n)
    # Ying et al. 2021, proposition 1: 1 − gap = (τ − 1)/(τ + 1) with τ = ⌈log₂n⌉, at even n.
    for n, tau in ((8, 3), (16, 4), (12, 4)):
        assert build_graph("exponential", n).at(1).spectral_gap == pytest.approx(2 / (tau + 1), abs=0.07)


@pytest.mark.parametrize("name", [name for name, recipe in GRAPHS.items() if recipe.carries_matcha])
def test_d2_mixes_by_a_matrix_that_its_theorem_covers(name: str) -> None:
    """λₙ > −1/3, which an even ring's W misses by nothing and a star's by much; others are left as they are."""
    for n in range(2, 17):
        if name == "torus" and ("torus", n) not in CASES:
            continue
        plain = build_graph(name, n).at(1)
        mixing = Gossip(graph=name, method="d2").over(n).at(1)
        assert mixing.least_eigenvalue > -1 / 3 + 1e-6
        assert mixing.is_doubly_stochastic
        assert mixing.is_symmetric
        assert mixing == (plain if plain.least_eigenvalue > -1 / 3 + 1e-6 else plain.lazy)
        check_round(round_program(mixing), mixing)


def test_no_number_of_workers_but_legal_ones() -> None:
    with pytest.raises(ProgramError, match=r"gossip:torus over 7 workers.* 6, 8, 9"):
        build_graph("torus", 7)
    with pytest.raises(ProgramError, match="at least 2"):
        build_graph("ring", 1)
    with pytest.raises(ProgramError, match="known: bandwidth, complete"):
        build_graph("circle", 4)


def test_what_does_not_connect_is_refused() -> None:
    halves = Mixing.uniform(4, [(0, 1), (2, 3)], both_ways=True)
    with pytest.raises(ProgramError, match="not connected over its period of 1 rounds"):
        connected(Graph("halves", 4, 1, lambda index: halves))
    one_way = Mixing.of(3, {(1, 0): 0.5, (2, 1): 0.5})
    with pytest.raises(ProgramError, match="not connected"):
        connected(Graph("chain", 3, 1, lambda index: one_way))


@given(st.sampled_from(["drop", "double", "redirect", "reweigh", "other chunk"]), st.integers(0, 23))
def test_a_broken_round_is_caught(fault: str, i: int) -> None:
    mixing = build_graph("exponential", 8).at(1)
    transfers = list(round_program(mixing).transfers)
    t = transfers[i]
    if fault == "drop":
        transfers.pop(i)
    elif fault == "double":
        transfers.append(dataclasses.replace(t, step=1))
    elif fault == "redirect":
        stranger = next(r for r in range(8) if r != t.src and not mixing.weight(r, t.src))
        transfers[i] = dataclasses.replace(t, dst=stranger)
    elif fault == "reweigh":
        transfers[i] = dataclasses.replace(t, weight=t.weight / 2)
    else:
        transfers[i] = dataclasses.replace(t, chunk=(t.chunk + 1) % 8)
    with pytest.raises(ProgramError, match="declared mixing matrix"):
        check_round(dataclasses.replace(round_program(mixing), transfers=tuple(transfers)), mixing)


# --- methods against their papers, on quadratics: worker i pulls x towards its own target -------------------------

DIM, RATE = 6, 0.2
Codec = Callable[[Matrix], Matrix]


def targets(n: int) -> Matrix:
    return np.random.default_rng(1).normal(size=(n, DIM))


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(DIM, dtype=torch.float64))


def descend(plan: str, n: int, steps: int) -> Matrix:
    """Returns all workers' parameters after every step, (steps, n, DIM), under SGD on ½‖x − target‖²."""

    def worker(transport: Transport) -> list[Tensor]:
        model, target = Point(), torch.tensor(targets(n)[transport.rank])
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        seen = []
        with attach(model, optimizer, plan, transport=transport):
            for _ in range(steps):
                optimizer.zero_grad()
                (0.5 * (model.x - target).square().sum()).backward()
                optimizer.step()
                seen.append(model.x.detach().clone())
        return seen

    return np.array([[x.numpy() for x in seen] for seen in run_threads(n, worker, deadline_s=20)]).swapaxes(
        0, 1
    )


def exact(x: Matrix) -> Matrix:
    return x


def largest(x: Matrix) -> Matrix:
    """Keeps the two largest of a worker's six elements."""
    kept = np.argsort(-np.abs(x), axis=1, kind="stable")[:, :2]
    out = np.zeros_like(x)
    np.put_along_axis(out, kept, np.take_along_axis(x, kept, axis=1), axis=1)
    return out


def gradient(x: Matrix) -> Matrix:
    return RATE * (x - targets(len(x)))


def d_psgd(graph: Graph, steps: int) -> list[Matrix]:
    x, seen = np.zeros((graph.num_ranks, DIM)), []
    for t in range(steps):
        w = graph.at(t).dense() if t else np.eye(len(x))  # the first mixes what is equal
        x = w @ x - gradient(x)
        seen.append(x)
    return seen


def d2(graph: Graph, steps: int) -> list[Matrix]:
    w = graph.at(1).dense()
    w = (w + np.eye(len(w))) / 2 if np.linalg.eigvalsh(w).min() <= -1 / 3 + 1e-9 else w
    xs = [np.zeros((graph.num_ranks, DIM))]
    for t in range(steps):
        if t == 0:
            xs.append(w @ (xs[0] - gradient(xs[0])))
        else:
            xs.append(w @ (2 * xs[-1] - xs[-2] - gradient(xs[-1]) + gradient(xs[-2])))
    return xs[1:]


def sgp(graph: Graph, steps: int) -> list[Matrix]:
    n = graph.num_ranks
    x, weight, seen = np.zeros((n, DIM)), np.ones(n), []
    for t in range(steps):
        p = (graph.at(t + 1).dense() > 0) | np.eye(n, dtype=bool)
        p = p / p.sum(0)
        z = x / weight[:, None]
        x, weight = p @ (x - gradient(z)), p @ weight
        seen.append(x / weight[:, None])
    return seen


def choco(graph: Graph, steps: int, codec: Codec, gamma: float) -> list[Matrix]:
    w = graph.at(1).dense()
    x, hat, seen = np.zeros((len(w), DIM)), np.zeros((len(w), DIM)), []
    for _ in range(steps):
        half = x - gradient(x)
        hat = hat + codec(half - hat)
        x = half + gamma * (w @ hat - hat)
        seen.append(x)
    return seen


def dcd(graph: Graph, steps: int, codec: Codec) -> list[Matrix]:
    w = graph.at(1).dense()
    x, seen = np.zeros((len(w), DIM)), []
    for _ in range(steps):
        x = x + codec(w @ x - gradient(x) - x)
        seen.append(x)
    return seen


def ecd(graph: Graph, steps: int, codec: Codec) -> list[Matrix]:
    w = graph.at(1).dense()
    x, estimate, seen = np.zeros((len(w), DIM)), np.zeros((len(w), DIM)), []
    for t in range(1, steps + 1):
        new = w @ estimate - gradient(x)
        estimate = (1 - 2 / t) * estimate + 2 / t * codec((1 - t / 2) * x + t / 2 * new)
        x = new
        seen.append(x)
    return seen


def deepsqueeze(graph: Graph, steps: int, codec: Codec, eta: float) -> list[Matrix]:
    w = graph.at(1).dense()
    x, error, seen = np.zeros((len(w), DIM)), np.zeros((len(w), DIM)), []
    for _ in range(steps):
        v = x - gradient(x) + error
        told = codec(v)
        error = v - told
        x = x - gradient(x) + eta * (w @ told - told)
        seen.append(x)
    return seen


def noloco(graph: Graph, steps: int, every: int) -> list[Matrix]:
    slow, move, seen = np.zeros((graph.num_ranks, DIM)), np.zeros((graph.num_ranks, DIM)), []
    fast = slow
    for t in range(1, steps + 1):
        fast = fast - gradient(fast)
        if t % every == 0:
            w = graph.at(t // every).dense()
            move = 0.5 * move - 0.7 * w @ (slow - fast) - (slow - w @ slow)
            slow = fast = slow + move
        seen.append(fast)
    return seen


ring, star, peers, exponential = (
    build_graph(g, 5) for g in ("ring", "star", "one-peer-exponential", "exponential")
)
PAPERS: dict[str, list[Matrix]] = {
    "bsp/gossip": d_psgd(ring, 12),
    "bsp/gossip:one-peer-exponential": d_psgd(peers, 12),
    "bsp/gossip:d2": d2(ring, 12),
    "bsp/gossip:star,method=d2": d2(star, 12),
    "bsp/gossip:star,method=sgp": sgp(star, 12),
    "bsp/gossip:sgp": sgp(peers, 12),
    "diloco:3,outer_momentum=0.5/gossip:noloco": noloco(build_graph("random-matching", 5), 12, 3),
    "bsp/gossip/choco:none,gamma=0.5": choco(ring, 12, exact, 0.5),
    "bsp/gossip:exponential/choco:topk=0.3,gamma=0.3": choco(exponential, 12, largest, 0.3),
    "bsp/gossip/dcd:none": dcd(ring, 12, exact),
    "bsp/gossip/dcd:topk=0.3": dcd(ring, 12, largest),
    "bsp/gossip/ecd:none": ecd(ring, 12, exact),
    "bsp/gossip/ecd:topk=0.3": ecd(ring, 12, largest),
    "bsp/gossip/deepsqueeze:none,eta=0.5": deepsqueeze(ring, 12, exact, 0.5),
    "bsp/gossip/deepsqueeze:topk=0.3,eta=0.3": deepsqueeze(ring, 12, largest, 0.3),
}


@pytest.mark.parametrize("plan", PAPERS)
def test_every_method_makes_its_papers_steps(plan: str) -> None:
    np.testing.assert_allclose(descend(plan, 5, 12), np.array(PAPERS[plan]), atol=1e-10)


def test_all_methods_are_held_against_their_papers() -> None:
    assert set(METHODS) - {"ad-psgd"} <= {Plan.parse(plan).architecture.method for plan in PAPERS}  # type: ignore[attr-defined]


@pytest.mark.parametrize("plan", ["bsp/gossip:d2", "bsp/gossip:star,method=d2"])
def test_d2_finds_the_optimum_of_unlike_data(plan: str) -> None:
    """D-PSGD at a constant rate stays apart by the spread of the targets; D² does not."""
    optimum = targets(5).mean(0)
    apart = np.abs(descend("bsp/gossip", 5, 60)[-1] - optimum).max()
    assert np.abs(descend(plan, 5, 150)[-1] - optimum).max() < 1e-3 < 0.1 < apart


@pytest.mark.parametrize(
    ("name", "n"), [("ring", 8), ("torus", 9), ("star", 6), ("expander", 8), ("exponential", 6)]
)
def test_consensus_follows_the_spectral_gap(name: str, n: int) -> None:
    """Workers start apart along W's slowest direction; after k rounds alone with gossip they are ρᵏ as far apart."""
    graph, rounds = build_graph(name, n), 8
    dense = graph.at(1).dense()
    eigenvalues, vectors = np.linalg.eig(dense - 1 / n)
    slowest = np.real(vectors[:, np.argmax(np.abs(eigenvalues))])

    def worker(transport: Transport) -> list[Tensor]:
        model = Point()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        seen = []
        with attach(model, optimizer, f"bsp/gossip:{name}", transport=transport):
            for step in range(rounds + 1):
                model.x.grad = torch.full_like(model.x, float(slowest[transport.rank]) * (step == 0))
                optimizer.step()
                seen.append(model.x.detach().clone())
        return seen

    seen = np.array([[x.numpy() for x in of] for of in run_threads(n, worker, deadline_s=20)])
    distances = np.linalg.norm(seen - seen.mean(0), axis=(0, 2))
    predicted = distances[0] * (1 - graph.at(1).spectral_gap) ** np.arange(rounds + 1)
    np.testing.assert_allclose(distances, predicted, rtol=0.05)


def test_saps_mixes_a_few_elements_and_the_same_on_all() -> None:
    """Elements that were drawn are mixed by W, all others are each worker's own; the mean is that of plain descent."""
    w, steps = ring.at(1).dense(), 6
    seen = descend("bsp/gossip/saps:0.34", 5, steps)
    x = np.zeros((5, DIM))
    for after in seen:
        half = x - gradient(x)
        mixed = np.isclose(after, w @ half).all(0)
        own = np.isclose(after, half).all(0)
        assert (mixed | own).all()
        assert (mixed & ~own).sum() == 3
        x = after


def test_bandwidth_goes_along_fast_links_and_connects_all() -> None:
    n = 8
    rates = [[0.0 if a == b else 1e8 if a // 4 == b // 4 else 1e6 for b in range(n)] for a in range(n)]
    graph = connected(bandwidth(n, rates))
    used = [edge for number in range(1, 101) for edge in graph.at(number).edges()]
    fast = sum(a // 4 == b // 4 for a, b in used)
    assert 0.75 < fast / len(used) < 1
    assert all(len(graph.at(number).edges()) == n for number in range(1, 101))


# --- laws of whole runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "n"), [(plan, (3, 5, 2, 4)[i % 4]) for i, plan in enumerate(PLANS)])
def test_traffic_and_agreement(plan: str, n: int) -> None:
    """Laws 2 and 9: bytes are as planned; at the end replicas are bit-identical, and the mean of what they were."""
    results = train_all(n, plan, steps=6)
    for trained in results:
        assert trained.report.sent_bytes == trained.report.planned_bytes > 0
        assert same(trained.parameters, results[0].parameters)
    ends = [trained.seen[-1] for trained in results]
    assert_close(results[0].parameters, [torch.stack(of).mean(0) for of in zip(*ends, strict=True)])


def test_predicted_bytes_are_those_of_the_program() -> None:
    graph, steps, numel = build_graph("star", 4), 3, sum(p.numel() for p in Net().parameters())
    for rank, trained in enumerate(train_all(4, "bsp/gossip:star/choco:none/sequential", steps=steps)):
        rounds = sum(round_bytes(graph, t, rank, 4 * numel) for t in range(1, steps + 1))
        end = trained.report.sent_bytes - rounds
        roll = 3 * 4 if rank == 0 else 1
        assert end == roll + 2 * 4 * numel  # recursive doubling over four


def test_local_steps_and_the_complete_graph_are_local_sgd() -> None:
    assert_close(
        train_all(3, "local:2/gossip:complete", steps=6)[0].parameters,
        train_all(3, "local:2", steps=6)[0].parameters,
    )


def test_a_world_of_one_is_plain() -> None:
    expected = train(Single(), "bsp", steps=3).parameters
    for plan in PLANS:
        assert same(train(Single(), plan, steps=3).parameters, expected)


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize(
    "plan",
    [
        "bsp/gossip",
        "bsp/gossip:d2",
        "bsp/gossip:star,method=sgp",
        "local:2/gossip",
        *(f"bsp/gossip/{c}" for c in COMPRESSIONS),
    ],
)
def test_resuming_is_continuing(plan: str, optimizer: Any) -> None:
    """Law 4, bit for bit."""

    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=optimizer) as j:
            for step in range(5):
                j.step(step)
            saved = _copied((j.model.state_dict(), j.optimizer.state_dict(), j.run.state_dict()))
            for step in range(5, 8):
                j.step(step)
        with job(
            transport, plan + "/fusion:64" if plan.count("/") == 2 else plan, optimizer=optimizer
        ) as other:
            other.model.load_state_dict(saved[0])
            other.optimizer.load_state_dict(saved[1])
            other.run.load_state_dict(saved[2])
            for step in range(5, 8):
                other.step(step)
        assert other.run.report().sent_bytes == other.run.report().planned_bytes
        if plan.count("/") == 1:
            assert same(values(j.model), values(other.model))

    run_threads(3, worker, deadline_s=20)


def _copied(state: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "plan", ["bsp/gossip", "bsp/gossip:sgp", "bsp/gossip/choco:topk=0.2", "asp/gossip:ad-psgd"]
)
def test_a_poisoned_step_stays_where_it_was_made(plan: str) -> None:
    """Law 8 without a common round: its worker drops the step, and nobody hears of it."""

    def worker(transport: Transport) -> tuple[list[Tensor], int]:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(5):
                j.step(step, factor=float("nan") if step == 2 and transport.rank == 1 else 1.0)
        return values(j.model), j.run.report().skipped

    results = run_threads(3, worker, deadline_s=20)
    assert [skipped for _, skipped in results] == [0, 1, 0]
    assert all(p.isfinite().all() for p in results[0][0])
    assert all(same(parameters, results[0][0]) for parameters, _ in results)


def test_evaluating_shows_the_mean_and_gives_back_what_was() -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "bsp/gossip") as j:
            for step in range(3):
                j.step(step)
            with j.run.evaluating():
                shown = values(j.model)
            assert same(values(j.model), j.seen[-1])
            assert not same(shown, j.seen[-1])
            j.step(3)
        return shown

    results = run_threads(3, worker, deadline_s=20)
    assert all(same(shown, results[0]) for shown in results)


# --- faults ------------------------------------------------------------------------------------------------------


class Fell(Exception):
    """A worker's own accident."""


@pytest.mark.parametrize(
    "plan",
    ["bsp/gossip:complete", "bsp/gossip:ring", "bsp/gossip:exponential/choco:topk=0.2", "asp/gossip:ad-psgd"],
)
def test_neighbours_of_the_dead_go_on_and_say_so(plan: str, caplog: pytest.LogCaptureFixture) -> None:
    ended: dict[int, list[Tensor]] = {}

    def worker(transport: Transport) -> None:
        with job(transport, plan) as j:
            for step in range(6):
                if step == 3 and transport.rank == 2:
                    raise Fell
                j.step(step)
        assert j.run.report().sent_bytes == j.run.report().planned_bytes
        ended[transport.rank] = values(j.model)

    with caplog.at_level(logging.WARNING), pytest.raises(Fell):
        run_threads(5, worker, deadline_s=10)
    assert sorted(ended) == [0, 1, 3, 4]
    assert all(same(parameters, ended[0]) for parameters in ended.values())
    assert any("rank 2 is gone" in record.message for record in caplog.records)


def test_a_graph_that_so_many_workers_have_not_is_refused_by_all() -> None:
    """Before the first step, each with the nearest numbers that have it; a lost worker's graph stays as it was."""

    def worker(transport: Transport) -> str:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ProgramError) as refused:
            attach(model, optimizer, "bsp/gossip:torus", transport=transport)
        assert not model._forward_pre_hooks
        return str(refused.value)

    said = run_threads(5, worker, deadline_s=5)
    assert len(set(said)) == 1
    assert "gossip:torus over 5 workers" in said[0]


def test_ranks_that_drew_other_graphs_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where floats of two machines lead to another expander."""
    at = Gossip.over

    def over(self: Gossip, num_ranks: int) -> Graph:
        rank = int(threading.current_thread().name.rpartition("-")[2])
        return at(dataclasses.replace(self, graph="star") if rank == 1 else self, num_ranks)

    monkeypatch.setattr(Gossip, "over", over)

    def worker(transport: Transport) -> None:
        threading.current_thread().name = f"worker-{transport.rank}"
        model = Net()
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "bsp/gossip", transport=transport)

    with pytest.raises(MismatchError, match="gossip graph: "):
        run_threads(4, worker, deadline_s=5)


def test_a_worker_in_another_round_is_noticed() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp/gossip/choco:none") as j:
            j.step(0)
            if transport.rank == 1:
                j.run._engine.resume_at(7)  # as after loading another checkpoint
            j.step(1)

    with pytest.raises(Exception, match=r"gossip round .* came: workers are not in the same step"):
        run_threads(3, worker, deadline_s=5)


@pytest.mark.parametrize("plan", PLANS)
def test_workers_may_make_unequal_numbers_of_steps(plan: str) -> None:
    """Who ends before the others rests until they do, without being waited for; all end equal, and train on."""

    def worker(transport: Transport) -> list[Tensor]:
        ends = []
        with job(transport, plan) as j:
            for epoch in range(2):
                for step in range(2 + 2 * transport.rank):
                    j.step(10 * epoch + step)
                j.run.finish()
                ends.append(torch.cat([p.detach().flatten() for p in j.model.parameters()]))
        return ends

    first, *others = run_threads(4, worker, deadline_s=20)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert other[1].isfinite().all()


def test_a_worker_that_never_comes_is_named() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "bsp/gossip/choco:none") as j:
            j.step(0)
            if transport.rank == 1:
                import time

                time.sleep(6)
            j.step(1)

    with pytest.raises(PeerError, match="rank 1 is alive but did not reach this point"):
        run_threads(3, worker, deadline_s=1)


# --- asynchronous ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5])
def test_asynchronous_averaging_keeps_the_sum_and_never_locks(n: int) -> None:
    """Odd cycles too, with hundreds of averages at once; workers make different numbers of steps."""

    def worker(transport: Transport) -> tuple[Tensor, int]:
        model = Point()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with attach(model, optimizer, "asp/gossip:ad-psgd", transport=transport) as run:
            for step in range(200 + 50 * transport.rank):
                model.x.grad = torch.full_like(model.x, float(transport.rank) * (step == 0))
                optimizer.step()
        assert run.report().sent_bytes == run.report().planned_bytes
        return model.x.detach(), run.report().rounds

    results = run_threads(n, worker, deadline_s=20)
    for x, rounds in results:
        torch.testing.assert_close(x, torch.full_like(x, -(n - 1) / 2))
        assert torch.equal(x, results[0][0])
        assert rounds > 0


# --- what goes together --------------------------------------------------------------------------------------------

REFUSED = {
    "bsp/gossip:one-peer-exponential/choco:topk=0.01": "bsp/gossip:exponential/topk:0.01+choco",
    "bsp/gossip:ad-psgd": "asp/gossip:method=ad-psgd",
    "asp/gossip": "bsp/gossip",
    "diloco:8/gossip": "diloco:8",
    "bsp/gossip/int8": "bsp/gossip/int8+choco",
    "bsp/gossip/topk:0.1+ef": "bsp/gossip/topk:0.1+choco",
    "bsp/gossip/powersgd:4": "bsp/allreduce/powersgd:4",
    "bsp/allreduce/choco:int4": "bsp/gossip:exponential/int4+choco",
    "bsp/gossip:matcha,method=d2": "bsp/gossip:method=d2",
    "bsp/gossip:exponential,method=d2": "bsp/gossip:method=d2",
    "bsp/gossip:d2/choco:int8": "bsp/gossip/int8+choco",
    "local:4,overlap=2/gossip": "local:4/gossip",
    "local:4/gossip:noloco": "diloco:64/gossip:random-matching,method=noloco",
    "bsp/gossip/none/p3": "bsp/gossip",
    "local:4/gossip/none/streaming:2": "local:4/gossip",
    "slowmo:4/gossip:noloco": "diloco:64/gossip:random-matching,method=noloco",
    "bsp/gossip/topk:0.1+saps": "bsp/gossip/randomk:0.01+saps",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_name_a_legal_plan(text: str) -> None:
    with pytest.raises(PlanError) as refused:
        Plan.parse(text)
    nearest = str(refused.value).rpartition("Nearest legal: ")[2].rstrip(".").split(", or ")
    assert REFUSED[text] in nearest
    for plan in nearest:
        Plan.parse(plan)


@pytest.mark.parametrize("text", [*PLANS, "asp/gossip:ad-psgd", "bsp/gossip:exponential/choco:topk=0.01"])
def test_texts_round_trip(text: str) -> None:
    plan = Plan.parse(text)
    assert Plan.parse(str(plan)) == plan


def test_short_forms() -> None:
    assert (
        str(Plan.parse("bsp/gossip:exponential/choco:topk=0.01")) == "bsp/gossip:exponential/topk:0.01+choco"
    )
    assert Plan.parse("bsp/gossip:sgp") == Plan.parse("bsp/gossip:one-peer-exponential,method=sgp")
    for wrong in (
        "gossip:circle",
        "gossip:ring,method=d3",
        "gossip:matcha,budget=0",
        "gossip:matcha,base=gossipgrad",
    ):
        with pytest.raises(PlanError):
            Plan.parse(f"bsp/{wrong}")
    for wrong in ("choco:int8,gamma=2", "choco:ef", "choco:topk=0.1,eta=1", "dcd"):
        with pytest.raises(PlanError):
            Plan.parse(f"bsp/gossip/{wrong}")
