"""Who owns what, and the synchronous program."""

from __future__ import annotations

import pytest

from tightwire.architecture import Setting, check
from tightwire.architecture.server.parameter_server import (
    ParameterServer,
    Roles,
    mixed_weights,
    node_program,
    shard_program,
)
from tightwire.compression import Identity
from tightwire.errors import PlanError
from tightwire.plan import Plan


@pytest.mark.parametrize("n", range(1, 12))
def test_every_number_of_shards_reaches_its_goal(n: int) -> None:
    for shards in range(1, n + 1):
        program = shard_program(n, shards)
        check(program)
        for _, transfers in program.steps():
            assert len({t.dst for t in transfers}) == len(transfers), "two meet at one owner"


@pytest.mark.parametrize("n", range(2, 10))
def test_by_nodes_too_and_nodes_send_others_the_least(n: int) -> None:
    for per_node in range(1, n + 1):
        for shards in {1, n // 2, n} - {0}:
            check(node_program(n, shards, per_node))
        program, nodes = node_program(n, n, per_node), -(-n // per_node)
        for node in range(nodes):
            across = [t for t in program.transfers if t.src // per_node == node != t.dst // per_node]
            mine = min(per_node, n - node * per_node)
            assert len(across) == (n - mine) + (nodes - 1) * mine
    assert {(t.step, t.src, t.dst, t.chunk, t.op) for t in node_program(n, n, 1).transfers} == {
        (t.step, t.src, t.dst, t.chunk, t.op) for t in shard_program(n, n).transfers
    }


def test_nodes_are_the_plans_or_the_launchers() -> None:
    told = ParameterServer(hierarchical=True, node=2)
    untold = ParameterServer(hierarchical=True)
    setting = Setting(num_ranks=6, workers_per_node=3)
    assert told.program_for(Identity(), 10, 4, setting) == node_program(6, 6, 2)
    assert untold.program_for(Identity(), 10, 4, setting) == node_program(6, 6, 3)
    assert (told.is_levelled, untold.is_levelled) == (False, True)
    with pytest.raises(PlanError, match="no launcher told"):
        untold.program(Identity(), 6)


def test_cost_is_the_closed_form() -> None:
    n, chunk, bytes_per_s, latency_s = 8, 1000, 1e6, 1e-3
    seconds = shard_program(n, n).seconds([chunk] * n, latency_s, bytes_per_s)
    assert seconds == pytest.approx(2 * (n - 1) * latency_s + 2 * (n - 1) / n * n * chunk / bytes_per_s)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (4, 1), (4, 3), (16, 5)])
def test_the_mix_keeps_all_lines_equally_busy(n: int, k: int) -> None:
    """A worker sends all but its own shard and answers n − 1 others; a server answers n (BytePS, section 4.1)."""
    weights = mixed_weights(n, k)
    assert sum(weights) == pytest.approx(1)
    worker, server = weights[0], weights[-1]
    assert (1 - worker) + (n - 1) * worker == pytest.approx(n * server)
    assert n * server == pytest.approx(2 * n * (n - 1) / (n * n + k * n - 2 * k))


def test_shares_are_balanced_and_nobody_is_left_out() -> None:
    roles = Roles(workers=(0, 1, 2), owners=(0, 1, 2), weights=(1.0,) * 3)
    numels = [100, 1, 50, 49, 0, 99, 0]
    owners = roles.share_out(numels)
    loads = [
        sum(size for size, owner in zip(numels, owners, strict=True) if owner == rank) for rank in range(3)
    ]
    assert sorted(loads) == [99, 100, 100]
    assert set(roles.share_out([0, 0, 0])) == {0, 1, 2}


def test_roles() -> None:
    assert ParameterServer().roles(3).owners == (0, 1, 2)
    assert ParameterServer(shards=2).roles(3).owners == (0, 1)
    dedicated = ParameterServer(servers=2).roles(5)
    assert (dedicated.workers, dedicated.owners, dedicated.dedicated) == ((0, 1, 2), (3, 4), (3, 4))
    assert ParameterServer(servers=1, mix=True).roles(4).owners == (0, 1, 2, 3)
    assert ParameterServer(servers=2, mix=True).roles(4).owners == (2, 3)  # as many servers: they take all


@pytest.mark.parametrize(
    ("member", "num_ranks", "said"),
    [
        (ParameterServer(servers=3), 3, "give at most ps:servers=2"),
        (ParameterServer(shards=4), 3, "give at most ps:shards=3"),
    ],
)
def test_more_owners_than_there_can_be(member: ParameterServer, num_ranks: int, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        member.roles(num_ranks)
    with pytest.raises(PlanError):
        member.program(Identity(), num_ranks)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ssp:3", "Nearest legal: ssp:3/ps, or bsp"),
        ("asp", "Nearest legal: asp/ps"),
        ("backup:1/allreduce:ring/int8", "Nearest legal: backup:1/ps/int8"),
        ("bsp/ps/topk:0.01", "Nearest legal: ssp:0/ps/topk:0.01"),
        ("local:4/ps:servers=1", "Nearest legal: local:4/ps"),
        ("asp/ps/topk:0.01+ef21", "Nearest legal: asp/ps/topk:0.01"),
        ("bsp/ps/powersgd:2", "brings an exchange of its own"),
        ("ssp:-1/ps", "negative bound"),
        ("backup:-1/ps", "fewer backup workers than none"),
        ("asp:rate_by=most/ps", "none of mean, staleness, full"),
        ("asp:dc=-1/ps", "λ is at least 0"),
        ("bsp/ps:mix=true", "give servers=1"),
        ("bsp/ps:shards=1,servers=1", "ps:servers=1,mix=true"),
        ("bsp/ps:shards=-1", "negative number of owners"),
        ("bsp/ps:2", "takes shards"),
        ("bsp/ps:node=2", "hierarchical=true,node=2"),
        ("bsp/ps:hierarchical=true,node=-2", "hierarchical=true,node=2"),
        ("asp/ps:hierarchical=true,node=2", "Nearest legal: bsp/ps:hierarchical=true, or asp/ps"),
        (
            "bsp/ps:servers=1,hierarchical=true",
            "Nearest legal: bsp/ps:hierarchical=true, or bsp/ps:servers=1",
        ),
    ],
)
def test_what_cannot_work_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "bsp/ps",
        "bsp/ps:shards=2",
        "bsp/ps:servers=1",
        "ssp:3/ps:shards=2/int8+ef",
        "asp:rate_by=staleness,dc=0.04/ps:servers=2,mix=true/topk:0.01+ef",
        "backup:1/ps",
        "local:8/ps/int8",
        "bsp/ps:hierarchical=true,node=2",
        "local:8/ps:shards=2,hierarchical=true/int8",
    ],
)
def test_texts(text: str) -> None:
    assert str(Plan.parse(text)) == text
