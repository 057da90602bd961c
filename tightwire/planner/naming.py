"""What sentences call a plan."""

from __future__ import annotations

import re

from tightwire.plan import Plan
from tightwire.planner.candidates import departures

# A longer text loses its settings, which tables and files have in full.
LONGEST = 48


def short(plan: Plan) -> str:
    """Returns the text of a plan as sentences have it: without settings that have a name, where it is long.

    >>> short(Plan.parse("bsp/allreduce/none/bytescheduler:4MiB,credit_bytes=16MiB,fuse_bytes=1MiB"))
    'bsp/allreduce/none/bytescheduler:4MiB,…'
    >>> short(Plan.parse("local:8"))
    'local:8'
    """
    text = str(plan)
    return text if len(text) <= LONGEST else re.sub(r"([:,])[a-z_]+=[^,/+]*(,[a-z_]+=[^,/+]*)*", r"\1…", text)


def name_of(plan: Plan) -> str:
    """Returns the same; plain all-reduce by what it is."""
    return "plain all-reduce" if departures(plan) == 0 else short(plan)
