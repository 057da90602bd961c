"""What goes wrong in a campaign, and what must then be said: a new fault is a line in `FAULTS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# goes-on: all finish, as if nothing had been. named: survivors end with an error that names the victim. loses: named
# where the plan waits for all, and done without where it does not. noticed: named, or nothing came of it.
Expected = Literal["goes-on", "named", "loses", "noticed"]


@dataclass(frozen=True, kw_only=True)
class ChaosFault:
    """One kind of fault.

    Attributes:
        name: of the fault.
        about: what happens, in words.
        expected: how the others end.
        victim_ends: whether the victim's own process ends by itself.
        on_hosts: whether it needs hosts with links of their own, as the lab makes them.
        at_start: whether it is there from the beginning, and not at a random step.
    """

    name: str
    about: str
    expected: Expected
    victim_ends: bool = True
    on_hosts: bool = False
    at_start: bool = False


FAULTS: Final = {
    fault.name: fault
    for fault in (
        ChaosFault(name="kill", about="the process is killed (SIGKILL)", expected="loses"),
        ChaosFault(name="freeze", about="the process is stopped for good", expected="loses", victim_ends=False),
        ChaosFault(name="pause", about="stopped for less than the deadline", expected="goes-on"),
        ChaosFault(name="thaw", about="stopped for longer than the deadline, then continued", expected="loses"),
        ChaosFault(name="slow", about="alive but late, for longer than the deadline", expected="goes-on"),
        ChaosFault(name="cut", about="the link is down for good", expected="loses", on_hosts=True),
        ChaosFault(name="raise", about="an exception in user code", expected="loses"),
        ChaosFault(name="exit", about="the program ends early, without an error", expected="loses"),
        ChaosFault(name="nan", about="a NaN in one rank's gradients", expected="goes-on"),
        ChaosFault(name="skip", about="a pass left out by one rank", expected="noticed"),
        ChaosFault(name="extra-pass", about="a backward pass too many", expected="noticed"),
        ChaosFault(name="other-plan", about="one rank has another plan", expected="named", at_start=True),
        ChaosFault(name="other-model", about="one rank has another model", expected="named", at_start=True),
        ChaosFault(name="other-rate", about="one rank has another learning rate", expected="named", at_start=True),
        ChaosFault(name="kill-joining", about="killed while the workers join", expected="named", at_start=True),
        ChaosFault(
            name="freeze-joining", about="stopped while the workers join", expected="named", victim_ends=False,
            at_start=True,
        ),
    )
}  # fmt: skip

# Those that need no hosts of their own.
LOCAL_FAULTS: Final = tuple(name for name, fault in FAULTS.items() if not fault.on_hosts)

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
