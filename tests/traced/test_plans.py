"""Law 11: under the traced device no access races, and every plan gives the CPU's numbers to the bit."""

from __future__ import annotations

import zlib

import pytest

from tests.traced.training import TRACED, same, train
from tightwire.architecture.allreduce.builders import PROGRAMS
from tightwire.catalogue import catalogue
from tightwire.compression.stage import Stage
from tightwire.errors import PlanError
from tightwire.plan import Plan

# Need to be told of nodes or links, or search by time.
NEEDS_MORE = (
    "bsp/allreduce:hierarchical",
    "bsp/allreduce:synthesised",
    "hierarchical-local",
    "bsp/allreduce/none/auto",
)
CHOSEN = [
    "bsp/allreduce:hierarchical,shape=2x2",
    "bsp/allreduce:hierarchical,shape=2x2/int8+ef",
    "bsp/allreduce:ring,streams=2",
    "bsp/gossip:exponential",
    "bsp/gossip:exponential/choco:topk=0.01",
    "asp/gossip:ad-psgd",
    "ssp:3/ps:shards=2/int8+ef",
    "ssp:0/ps:shards=2,on_device=true/int8+ef",
    "ssp:0/ps:servers=1,on_device=true/topk:0.2+ef",
    "bsp/ps:servers=1,mix=true,on_device=true",
    "asp:dc=0.1/ps:shards=2,on_device=true",
    "bsp/ps",
]


def plans() -> list[str]:
    """Returns a legal plan for every member of every family."""
    texts = list(CHOSEN)
    for member in catalogue("compression").values():
        example = member.example or member.name
        texts.append(
            f"bsp/allreduce/{'topk:0.1+' * (issubclass(member, Stage) and '+' not in example)}{example}"
        )
    texts += [member.example or member.name for member in catalogue("sync").values()]
    texts += [f"bsp/allreduce/none/{m.example or m.name}" for m in catalogue("schedule").values()]
    texts += [f"bsp/allreduce:{name}{codec}" for name in PROGRAMS for codec in ("", "/int8+ef")]
    return [text for text in dict.fromkeys(texts) if _is_legal(text) and not _needs_more(text)]


def _is_legal(text: str) -> bool:
    try:
        Plan.parse(text)
    except PlanError:
        return False
    return True


def _needs_more(text: str) -> bool:
    return text.startswith(NEEDS_MORE) and text not in CHOSEN


PLANS = plans()


@pytest.mark.parametrize("plan", PLANS)
def test_any_order_of_streams_gives_the_same_numbers(plan: str, pytestconfig: pytest.Config) -> None:
    if plan not in CHOSEN and PLANS.index(plan) % 4 and not pytestconfig.getoption("--many"):
        pytest.skip("a quarter of the plans that are made from the catalogue; --many takes all")
    workers = 4 if "2x2" in plan or "ps:" in plan else 2
    seed = zlib.crc32(plan.encode())
    expected = train(plan, "cpu", workers=workers)
    TRACED.restart(seed=seed, haste=(0.0, 0.5, 2.0)[seed % 3])
    found = train(plan, "traced", workers=workers)
    assert not list(dict.fromkeys(map(str, TRACED.races)))
    if "asp" not in plan and "ssp" not in plan:  # whose numbers depend on who comes first, on the CPU too
        assert same(expected, found)


def test_the_list_is_not_empty() -> None:
    assert len(PLANS) > 90
