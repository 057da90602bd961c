"""Trials whose fault is the network's: workers on the hosts of a lab, each with a link of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tightwire.bench.chaos.arena import Ending, Site, run_forked
from tightwire.bench.chaos.worker import ChaosTrial
from tightwire.lab import Lab, Topology
from tightwire.lab.keeper import enter

RATE_BYTES_PER_S: Final = 25e6
SLOW_BYTES_PER_S: Final = 125e3
LOSE_ONE_IN: Final = 32


def run_on_hosts(trial: ChaosTrial) -> Ending:
    """Runs one worker on each host, and harms the victim's link when it says so.

    Raises:
        LabError: neither root nor user namespaces are to be had here.
    """
    with Lab(Topology.parse("star", trial.workers, RATE_BYTES_PER_S)) as lab:

        def enter_host(rank: int) -> None:
            with lab.entrance(rank) as namespaces:
                for namespace in namespaces:
                    enter(namespace)

        def environment(rank: int, told: Mapping[str, str]) -> Mapping[str, str]:
            return lab.environment(rank, {name: told[name] for name in ("MASTER_PORT", "TIGHTWIRE_SECRET")})

        site = Site(environment=environment, enter=enter_host, strike=lambda: _harm(lab, trial))
        return run_forked(trial, site)


def _harm(lab: Lab, trial: ChaosTrial) -> None:
    match trial.fault:
        case "cut":
            lab.cut(trial.victim)
        case "half-open":
            lab.deafen(trial.victim)
        case "slow-link":
            lab.set_rate(SLOW_BYTES_PER_S, trial.victim)
        case "loss":
            lab.lose(trial.victim, LOSE_ONE_IN)
