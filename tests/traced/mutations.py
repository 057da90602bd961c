"""Leaves out every wait of the runtime in turn, and shows what becomes of it: `python -m tests.traced.mutations`.

A wait is `follow` (a stream waits for a mark) or `wait` (the host does), at the place in our code that calls it. Each
is left out alone, everywhere it is reached, in the jobs that reach it, until in one of them it shows as a race with
both places named, or as other numbers than the CPU's. (What the host waits for, streams need not.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from tests.traced.training import TRACED, fused, same, sgd, train
from tightwire.errors import TightwireError

# Between them these reach every wait: lanes, pinned sends, receives and native sums, methods on the host, pieces.
PLANS = (
    "bsp",
    "bsp/allreduce:native",
    "bsp/allreduce:ring/int8+ef",
    "bsp/allreduce/topk:0.1+ef",
    "bsp/allreduce/entropy",
    "bsp/allreduce/none/tictac",
    "local:2",
)
# As before, with a GradScaler and an optimizer that skips on the device: the host waits for no mean.
SCALED = ("bsp/allreduce:ring/int8+ef",)
JOBS = [*((plan, False) for plan in PLANS), *((plan, True) for plan in SCALED)]


@dataclass(frozen=True)
class Outcome:
    """What a plan does without one wait."""

    site: str
    plan: str
    races: int
    first: str
    has_other_numbers: bool

    @property
    def is_caught(self) -> bool:
        return self.races > 0 or self.has_other_numbers


def run(plan: str, scales: bool, kind: str) -> list[list[Tensor]]:
    """Trains one of the jobs."""
    return train(plan, kind, scales=scales, optimizer=fused if scales else sgd)


def sites_of(plan: str, scales: bool) -> set[str]:
    """Returns the waits that a job reaches."""
    TRACED.restart()
    run(plan, scales, "traced")
    assert not TRACED.races
    return set(TRACED.sites)


def without(site: str, plan: str, scales: bool, expected: list[list[Tensor]]) -> Outcome:
    """Trains with one wait left out; `expected` are the CPU's numbers."""
    TRACED.restart()
    TRACED.omitted = frozenset({site})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = not same(expected, run(plan, scales, "traced"))
    except (TightwireError, ValueError):  # what was read too early was not even a message
        other = True
    finally:
        TRACED.omitted = frozenset()
    races = TRACED.races
    under = f"{plan}, scaled" if scales else plan
    return Outcome(site, under, len(races), str(races[0]) if races else "", other)


def outcomes() -> list[Outcome]:
    """Leaves out every wait, each in jobs that reach it, until it is caught."""
    found: dict[str, Outcome] = {}
    for plan, scales in JOBS:
        expected = run(plan, scales, "cpu")
        for site in sorted(sites_of(plan, scales)):
            if site not in found or not found[site].is_caught:
                found[site] = without(site, plan, scales, expected)
    return list(found.values())


def main() -> None:
    """Prints the table."""
    print("| left out | under | races | other numbers | first race |\n|---|---|---|---|---|")
    found = outcomes()
    for o in found:
        print(f"| {o.site} | {o.plan} | {o.races} | {'yes' if o.has_other_numbers else 'no'} | {o.first} |")
    caught = sum(o.is_caught for o in found)
    print(f"\n{caught} of {len(found)} missing waits are caught.")


if __name__ == "__main__":
    main()
