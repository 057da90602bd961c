"""How the network is shared: a policy orders the exchanges that are under way; the first take what they need.

Rates follow from the order: an exchange advances on all its links together, as a collective does (and as MADD has a
coflow's flows end together), so a job's share is limited by its scarcest link; what it leaves is for the next. Without
an order, all share fairly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tightwire.errors import PlanError
from tightwire.jobs.job import Job
from tightwire.simulate.flows import fair_rates


@dataclass
class JobExchange:
    """An exchange under way.

    Attributes:
        job: whose.
        since_s: when it became ready.
        left: share of it that has not moved yet.
    """

    job: Job
    since_s: float
    left: float = 1.0


# Measured: two equal jobs that begin together over a line of 100 Mb/s, cubic, one FIFO queue. Their exchanges of 0.45 s
# end 0.14 s apart, then 0.28, 0.36, 0.43, and 0.45 for ever, when they no longer meet.
TCP_FIRST_SHARE = 0.62

# A number by which exchanges are ordered, the least first.
Key = Callable[[JobExchange], float]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A way to share the network.

    Attributes:
        name: as in reports.
        title: what it does.
        paper: where it is from.
        key: by which exchanges are ordered; None: all share fairly.
        interleaves: whether jobs are shifted in time first.
        first_share: where all share, what the exchange that began first gets of a link that it has to share with one
            other: more than half under TCP, whose window has grown by then.
    """

    name: str
    title: str
    paper: str
    key: Key | None = None
    interleaves: bool = False
    first_share: float = 0.5

    def speeds(self, exchanges: Sequence[JobExchange]) -> dict[str, float]:
        """Returns how fast each exchange advances, as a share of its speed alone, by its job's name."""
        if not exchanges:
            return {}
        if self.key is None:
            return _fair(exchanges, self.first_share)
        return _in_order(sorted(exchanges, key=lambda x: (self.key(x), x.job.name)))  # type: ignore[misc]


def policy(name: str) -> Policy:
    """Returns a policy by name.

    Raises:
        PlanError: an unknown one; lists those that exist.
    """
    if name not in POLICIES:
        raise PlanError(f"{name!r} is no known network policy; known: {', '.join(POLICIES)}.")
    return POLICIES[name]


def _fair(exchanges: Sequence[JobExchange], first_share: float) -> dict[str, float]:
    """Shares every link max–min fairly among the jobs that cross it, each by its busiest link's need."""
    first = min(exchanges, key=lambda x: (x.since_s, x.job.name))
    weights = np.array([first_share / (1 - first_share) if x is first else 1.0 for x in exchanges])
    links = sorted({link for x in exchanges for link in x.job.bytes_by_link})
    place = {link: i for i, link in enumerate(links)}
    uses = np.zeros((len(links), len(exchanges)))
    capacity = np.array([exchanges[0].job.rates[link] for link in links])
    solo = np.empty(len(exchanges))
    for column, x in enumerate(exchanges):
        most = max(x.job.bytes_by_link.values())
        for link, size in x.job.bytes_by_link.items():
            uses[place[link], column] = size / most
        solo[column] = most / x.job.wire_s
    rates = weights * fair_rates(uses, weights, capacity)
    return {
        x.job.name: float(min(1.0, rate / alone))
        for x, rate, alone in zip(exchanges, rates, solo, strict=True)
    }


def _in_order(exchanges: Sequence[JobExchange]) -> dict[str, float]:
    left: dict[int, float] = {}
    speeds = {}
    for x in exchanges:
        needs = {link: size / x.job.wire_s for link, size in x.job.bytes_by_link.items()}
        speed = min(
            [
                1.0,
                *(max(0.0, left.get(link, x.job.rates[link])) / need for link, need in needs.items() if need),
            ]
        )
        for link, need in needs.items():
            left[link] = left.get(link, x.job.rates[link]) - speed * need
        speeds[x.job.name] = speed
    return speeds


def _remaining_bytes(x: JobExchange) -> float:
    return x.left * sum(x.job.bytes_by_link.values())


def _bottleneck_s(x: JobExchange) -> float:
    return x.left * x.job.wire_s


POLICIES: Mapping[str, Policy] = {
    p.name: p
    for p in (
        Policy(
            name="fair",
            title="Jobs share every link equally",
            paper="Bertsekas and Gallager 1992, section 6.5",
        ),
        Policy(
            name="first-come",
            title="The exchange that was ready first goes first",
            paper="FIFO",
            key=lambda x: x.since_s,
        ),
        Policy(
            name="intensity",
            title="The job with most compute per second of communication goes first",
            paper="Cao et al. 2024, Crux: GPU-efficient communication scheduling, SIGCOMM",
            key=lambda x: -x.job.intensity,
        ),
        Policy(
            name="shortest",
            title="The exchange with the fewest bytes left goes first",
            paper="Schrage 1968, shortest remaining processing time",
            key=_remaining_bytes,
        ),
        Policy(
            name="coflow",
            title="The exchange with the least bottleneck goes first, its flows ending together (SEBF, MADD)",
            paper="Chowdhury, Zhong and Stoica 2014, Efficient coflow scheduling with Varys, SIGCOMM",
            key=_bottleneck_s,
        ),
        Policy(
            name="echelon",
            title="The exchange that should have ended first goes first: least ideal finish time",
            paper="Pan et al. 2022, Efficient flow scheduling in distributed deep learning with EchelonFlow, HotNets",
            key=lambda x: x.since_s + x.job.wire_s,
        ),
        Policy(
            name="interleaved",
            title="Jobs are shifted so that their exchanges do not meet, then share fairly",
            paper="Rajasekaran, Ghobadi and Akella 2024, CASSINI: network-aware job scheduling, NSDI; arXiv:2308.00852",
            interleaves=True,
        ),
        Policy(
            name="tcp",
            title="Jobs share as TCP does: the exchange that began first keeps more, so that equal jobs drift apart",
            paper="Rajasekaran et al. 2023, Congestion control in machine learning clusters, HotNets",
            first_share=TCP_FIRST_SHARE,
        ),
    )
}
