"""Leaves out every wait of the runtime in turn, and shows what becomes of it: `python -m tests.traced.mutations`.

A wait is `follow` (a stream waits for a mark) or `wait` (the host does), at the place in our code that calls it. Each
is left out alone, everywhere it is reached, in plans that reach it; it must show as a race with both places
named, or as other numbers than the CPU's.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from tests.traced.training import TRACED, same, train
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


def sites_of(plan: str) -> set[str]:
    """Returns the waits that a plan reaches."""
    TRACED.restart()
    train(plan, "traced")
    assert not TRACED.races
    return set(TRACED.sites)


def without(site: str, plan: str, *, haste: float = 0.0) -> Outcome:
    """Trains with one wait left out."""
    expected = train(plan, "cpu")
    TRACED.restart(haste=haste)
    TRACED.omitted = frozenset({site})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = not same(expected, train(plan, "traced"))
    except (TightwireError, ValueError):  # what was read too early was not even a message
        other = True
    finally:
        TRACED.omitted = frozenset()
    races = TRACED.races
    return Outcome(site, plan, len(races), str(races[0]) if races else "", other)


def outcomes() -> list[Outcome]:
    """Leaves out every wait, each in the first plan that reaches it."""
    reached: dict[str, str] = {}
    for plan in PLANS:
        for site in sorted(sites_of(plan)):
            reached.setdefault(site, plan)
    return [without(site, plan) for site, plan in sorted(reached.items())]


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
