"""What each worker of the tour runs: measure, plan, train. Rank 0 tells of it, one JSON object per line.

python -m tightwire.tour.worker '{"seconds": 45, "plans": ["ddp", "lossless", "lossy"], "out": "out"}'
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from tightwire.cluster import Cluster
from tightwire.plan import Plan
from tightwire.planner import STOCK, Allowance, Ranking, candidates, is_lossless, recommend
from tightwire.probe import probe
from tightwire.profile import Profile, measure, measure_codecs, measure_pass
from tightwire.simulate import predict
from tightwire.tour.tour import DDP, DDP_POWERSGD, RACE, RACE_SHARE
from tightwire.tour.tour import STOCK as STOCK_DDP
from tightwire.tour.training import TourReplica, train
from tightwire.transport import Transport, init, shutdown
from tightwire.workloads.text import Corpus, standard_library

PROBE_BUDGET_S = 12.0
PROFILE_STEPS = 8
# What is predicted for stock DDP.
STANDS_FOR = {DDP: STOCK, DDP_POWERSGD: "bsp/allreduce/powersgd:4+ef/fusion:1GiB"}


@dataclass(frozen=True)
class Order:
    """What the tour wants.

    Attributes:
        seconds: of training per plan.
        plans: texts of plans, `ddp`, or an allowance, for the best plan that it allows.
        out: folder for what is measured and traced.
        deadline_s: of every wait.
    """

    seconds: float
    plans: list[str]
    out: str
    deadline_s: float = 60.0


@dataclass(frozen=True)
class Teller:
    """Prints events on rank 0 for the tour to read."""

    rank: int

    def tell(self, event: str, **facts: Any) -> None:
        """Prints one event."""
        if self.rank == 0:
            print(json.dumps({"event": event, **facts}), flush=True)


def main() -> None:
    """Runs the stages in turn. Every worker."""
    order = Order(**json.loads(sys.argv[1]))
    transport = init(deadline_s=order.deadline_s)
    teller = Teller(transport.rank)
    corpus, out = standard_library(), pathlib.Path(order.out)
    cluster = _probe(transport, teller, out)
    profile = _profile(transport, corpus, teller, out)
    chosen = _choose(order.plans, profile, cluster, transport, teller, out)
    for number, (role, plan) in enumerate(chosen):
        cost = {"lost_s": RACE_SHARE * order.seconds} if plan == RACE else {}
        teller.tell("stage", name="train", detail=plan, seconds=order.seconds, **cost)
        training = train(
            plan,
            order.seconds,
            transport,
            corpus,
            on_progress=lambda s: teller.tell("progress", seconds=s),
            trace=out / f"trace-{number}.json" if transport.rank == 0 and plan not in STOCK_DDP else None,
        )
        prediction = predict(STANDS_FOR.get(plan, training.plan), profile, cluster)
        teller.tell(
            "trained",
            role="lossy" if plan == RACE and not is_lossless(Plan.parse(training.plan)) else role,
            asked=plan,
            training=asdict(training),
            prediction=prediction.values(),
            number=number,
        )
    shutdown()


def _probe(transport: Transport, teller: Teller, out: pathlib.Path) -> Cluster:
    teller.tell("stage", name="probe", seconds=PROBE_BUDGET_S)
    cluster = probe(
        transport,
        budget_s=PROBE_BUDGET_S,
        on_progress=lambda share, _: teller.tell("progress", seconds=share * PROBE_BUDGET_S),
    )
    if transport.rank == 0:
        cluster.write(out / "cluster.yaml")
    teller.tell("probed", bandwidth_bytes_per_s=cluster.bandwidth_bytes_per_s, latency_s=cluster.latency_s)
    return cluster


def _profile(transport: Transport, corpus: Corpus, teller: Teller, out: pathlib.Path) -> Profile:
    """Profiles while all workers compute, so that shared cores count as they will in training."""
    teller.tell("stage", name="profile", seconds=10.0)
    replica = TourReplica(corpus, transport.rank)
    transport.barrier()
    profile = dataclasses.replace(
        measure(replica.model, replica.optimizer, replica.step, steps=PROFILE_STEPS), **_codec_costs()
    )
    if transport.rank == 0:
        profile.write(out / "profile.yaml")
    teller.tell("profiled", compute_s=profile.compute_s, num_bytes=profile.num_bytes)
    return profile


def _codec_costs() -> dict[str, Any]:
    compressions = sorted({plan.compression_text for plan in candidates(2**22, "lossy")})
    return {
        "codecs": measure_codecs(compressions),
        "pass_s_per_element": measure_pass(),
    }


def _choose(
    wanted: list[str],
    profile: Profile,
    cluster: Cluster,
    transport: Transport,
    teller: Teller,
    out: pathlib.Path,
) -> list[tuple[str, str]]:
    """Returns (role, plan) for each wanted plan; rank 0's measurements decide for all."""
    teller.tell("stage", name="plan", seconds=2.0)
    chosen: list[tuple[str, str]] = []
    if transport.rank == 0:
        rankings: dict[str, Ranking] = {
            allow: recommend(profile, cluster, allow=cast(Allowance, allow)) for allow in get_args(Allowance)
        }
        for want in wanted:
            plan = str(rankings[want].chosen.plan) if want in rankings else want
            chosen.append((_role(plan), plan))
        for allow, ranking in rankings.items():
            ranking.plan_file().write(out / f"plan-{allow}.yaml")
        teller.tell("planned", why={allow: ranking.why for allow, ranking in rankings.items()})
    return [tuple(pair) for pair in json.loads(transport.exchange(json.dumps(chosen).encode())[0])]


def _role(plan: str) -> str:
    if plan in STOCK_DDP:
        return DDP
    if plan == RACE:
        return "lossless"
    return "lossless" if is_lossless(Plan.parse(plan)) else "lossy"


if __name__ == "__main__":
    main()
