"""A new member is one file and one line: what is registered from outside is found wherever members are walked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEMBERS = ("codec", "stage", "sync", "schedule", "program", "graph")

FIND = """
import json
import tests.outside
from tests.laws import test_codecs, test_gossip, test_programs, test_stages, test_syncs
from tests.schedule import test_schedules
from tightwire.architecture import PROGRAMS
from tightwire.bench.kernels import default_kernels
from tightwire.cli.methods import describe
from tightwire.planner import predict
from tightwire.planner.candidates import candidates, neighbours
from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.profile import Profile
from tightwire.study.studies import find

profile = Profile.uniform(layers=4, numel_per_layer=62_500, forward_s=0.003, backward_s=0.007)
cluster = Cluster.uniform(4, 1e8, 1e-4)
price = lambda text: predict(text, profile, cluster).step_s
plans = {str(plan) for plan in candidates(1_000_000, "stale")}
plans |= {str(plan) for plan in neighbours(Plan.parse("bsp"), 1_000_000, "stale")}
print(json.dumps({
    "laws": [*test_codecs.CODECS, *test_stages.STAGED, *test_syncs.SYNCS, *map(str, test_schedules.SCHEDULES),
             *PROGRAMS, *(name for name, _ in test_gossip.CASES)],
    "methods": [row["name"] for row in describe()],
    "planner": sorted(plans),
    "benches": list(default_kernels()),
    "study": find("outside-study").name,
    "prices": [price("outside-sync"), price("bsp"), price("bsp/allreduce/outside-codec"),
               price("bsp/allreduce/none/outside-schedule"), price("bsp/allreduce:outside-program"),
               price("bsp/allreduce:ring")],
}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """What a fresh interpreter finds after it has registered one member of every family."""
    done = subprocess.run(
        [sys.executable, "-c", FIND], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("where", ["laws", "methods"])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_from_outside_is_found(found: dict[str, list[str]], where: str, member: str) -> None:
    assert [text for text in found[where] if f"outside-{member}" in text]


@pytest.mark.parametrize("member", [member for member in MEMBERS if member != "stage"])
def test_the_planner_considers_it(found: dict[str, list[str]], member: str) -> None:
    assert [text for text in found["planner"] if f"outside-{member}" in text]


def test_benches_and_studies_know_it(found: dict[str, list[str]]) -> None:
    assert "outside-codec" in found["benches"]
    assert found["study"] == "outside-study"


def test_it_is_priced_by_what_its_class_says(found: dict[str, list[float]]) -> None:
    often, bsp, codec, schedule, program, ring = found["prices"]
    assert often == bsp
    assert program == ring
    assert min(codec, schedule) > 0


def test_a_policy_that_does_not_say_what_carries_it_out_is_refused() -> None:
    from tightwire.sync.sync import Sync

    with pytest.raises(TypeError, match="does not declare its engine"):
        type("Silent", (Sync,), {"name": "silent", "title": "", "paper": ""})
