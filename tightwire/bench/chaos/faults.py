"""What goes wrong in a campaign, and what must then be said: a new fault is a line in `FAULTS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tightwire.plan import Phases, Plan

# goes-on: all finish, as if nothing had been. named: survivors end with an error that names the victim. loses: named
# where the plan waits for all, and done without where it does not. noticed: named, or nothing came of it.
Expected = Literal["goes-on", "named", "loses", "noticed"]
# loopback: workers forked on this host. hosts: of a lab, each with a link of its own. torchrun: with its agent.
Where = Literal["loopback", "hosts", "torchrun"]


@dataclass(frozen=True, kw_only=True)
class ChaosFault:
    """One kind of fault.

    Attributes:
        name: of the fault.
        about: what happens, in words.
        expected: how the others end.
        victim_ends: whether the victim's own process ends by itself.
        where: the workers live.
        strikes: any rank, the one that hosts the rendezvous (rank 0), a dedicated server, or any rank of an
            elastic job.
        at_start: whether it is there from the beginning, and not at a random step.
        elastic: how the others end in an elastic job; None: as `expected`, and done without where it loses.
        can_be_large: whether runs with large messages are struck too; not where each would take minutes.
    """

    name: str
    about: str
    expected: Expected
    victim_ends: bool = True
    where: Where = "loopback"
    strikes: Literal["anyone", "host", "server", "elastic"] = "anyone"
    at_start: bool = False
    elastic: Expected | None = None
    can_be_large: bool = True


FAULTS: Final = {
    fault.name: fault
    for fault in (
        ChaosFault(name="kill", about="the process is killed (SIGKILL)", expected="loses"),
        ChaosFault(name="freeze", about="the process is stopped for good", expected="loses", victim_ends=False),
        ChaosFault(
            name="rejoin", about="killed in an elastic job, and started anew", expected="goes-on", strikes="elastic"
        ),
        ChaosFault(name="pause", about="stopped for less than the deadline", expected="goes-on"),
        ChaosFault(name="thaw", about="stopped for longer than the deadline, then continued", expected="loses"),
        ChaosFault(name="slow", about="alive but late, for longer than the deadline", expected="goes-on"),
        ChaosFault(name="kill-host", about="rank 0, where workers met, is killed", expected="loses", strikes="host"),
        ChaosFault(name="kill-server", about="a dedicated server is killed", expected="named", strikes="server"),
        ChaosFault(
            name="freeze-server", about="a dedicated server is stopped for good", expected="named", victim_ends=False,
            strikes="server",
        ),
        ChaosFault(name="cut", about="the link is down for good", expected="loses", where="hosts"),
        ChaosFault(name="half-open", about="a link that carries only what the worker sends", expected="loses",
                   where="hosts"),
        ChaosFault(name="slow-link", about="a link at 1 Mb/s from then on", expected="goes-on", where="hosts",
                   can_be_large=False),
        ChaosFault(name="loss", about="a link that loses one packet in 32", expected="goes-on", where="hosts"),
        ChaosFault(name="full-disk", about="a file that does not fit on the disk", expected="loses"),
        ChaosFault(name="launcher", about="torchrun's agent is killed", expected="goes-on", where="torchrun",
                   can_be_large=False),
        ChaosFault(name="raise", about="an exception in user code", expected="loses"),
        ChaosFault(name="exit", about="the program ends early, without an error", expected="loses"),
        ChaosFault(name="nan", about="a NaN in one rank's gradients", expected="goes-on"),
        ChaosFault(name="skip", about="a pass left out by one rank", expected="noticed"),
        ChaosFault(name="extra-pass", about="a backward pass too many", expected="noticed"),
        ChaosFault(name="other-plan", about="one rank has another plan", expected="named", at_start=True),
        ChaosFault(name="other-model", about="one rank has another model", expected="named", at_start=True),
        # Members of an elastic job begin with the rates of one.
        ChaosFault(name="other-rate", about="one rank has another learning rate", expected="named", at_start=True,
                   elastic="goes-on"),
        ChaosFault(
            name="kill-joining", about="killed while the workers join", expected="named", at_start=True,
            elastic="goes-on",
        ),
        ChaosFault(
            name="freeze-joining", about="stopped while the workers join", expected="named", victim_ends=False,
            at_start=True, elastic="goes-on",
        ),
        ChaosFault(
            name="kill-lighthouse", about="the lighthouse of an elastic job is killed", expected="goes-on",
            strikes="elastic",
        ),
    )
}  # fmt: skip

# Those that take seconds: on hosts and under torchrun every worker imports PyTorch anew.
LOCAL_FAULTS: Final = tuple(name for name, fault in FAULTS.items() if fault.where == "loopback")

# One plan of each family: what becomes of the others if one is gone, unless it is a server.
FAMILIES: Final[dict[str, Literal["ends", "goes-on"]]] = {
    "bsp": "ends",
    "bsp/allreduce:ring/int8+ef": "ends",
    "bsp/allreduce/none/p3": "ends",
    "local:4": "ends",
    "diloco:4": "ends",
    "delayed:1": "ends",
    "bsp/gossip:ring": "goes-on",
    "asp/gossip:ad-psgd": "goes-on",
    "asp/ps": "ends",
    "asp/ps:servers=1": "goes-on",
    "ssp:2/ps:servers=1": "goes-on",
}

# One plan of each family that an elastic job can train: all others go on, whoever is gone.
ELASTIC: Final = (
    "bsp",
    "bsp/allreduce:ring/int8+ef",
    "bsp/allreduce/none/p3",
    "local:4",
    "diloco:4",
    "diloco:4,quorum=0.5,grace=20ms",
    "acco",
    "bsp/gossip:ring",
    "asp/gossip:ad-psgd",
    "ssp:0/ps",
    "asp/ps",
    "async-diloco:4/ps",
    "local:3@8~bsp",
    "ssp:0/ps@5~local:2",
    "bsp/gossip:ring@9~bsp",
    "auto",
)


def phases_of(plan: str) -> Phases:
    """Reads a plan, several in turn, or `auto`, which begins with one.

    Raises:
        PlanError: none of these.
    """
    return Phases.parse("bsp" if plan == "auto" else plan)


def ends_with_one(plan: str, at_step: int) -> bool:
    """Whether all wait for a worker that is gone after so many steps, under a plan in force then or later."""
    phases = phases_of(plan)
    ahead = phases.plans[phases.plans.index(phases.at(at_step + 1)) :]
    return any(_ENDS.get(phase, True) for phase in ahead)


_ENDS: Final = {Plan.parse(plan): end == "ends" for plan, end in FAMILIES.items()}
