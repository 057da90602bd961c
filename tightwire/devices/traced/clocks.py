"""Vector clocks over streams and host threads, and what they say of two accesses to one byte: ordered, or a race.

An agent is a stream or a host thread. Its own count grows with everything it does; what it has waited for it knows the
counts of. One access comes before another if the other's agent knew of it (Lamport 1978; Mattern 1989).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class Clock:
    """What an agent knows of all agents: how far each had come."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts: dict[str, int] = dict(counts or {})

    def tick(self, agent: str) -> int:
        """Counts one thing that `agent` does, and returns its number."""
        self.counts[agent] = self.counts.get(agent, 0) + 1
        return self.counts[agent]

    def join(self, other: Clock) -> None:
        """Learns all that another clock knows."""
        for agent, count in other.counts.items():
            if count > self.counts.get(agent, 0):
                self.counts[agent] = count

    def knows(self, agent: str, count: int) -> bool:
        """Whether what `agent` did as number `count` comes before now."""
        return self.counts.get(agent, 0) >= count

    def copy(self) -> Clock:
        """Returns the same knowledge, as a value of its own."""
        return Clock(self.counts)


@dataclass(frozen=True)
class Access:
    """One read or write of memory.

    Attributes:
        start: of its bytes, by address.
        stop: behind them.
        writes: whether it writes.
        agent: who.
        count: the agent's number of it.
        what: the operation, and the line of ours that asked for it.
    """

    start: int
    stop: int
    writes: bool
    agent: str
    count: int
    what: str


@dataclass(frozen=True)
class AccessRace:
    """Two accesses to the same bytes, one of them a write, that nothing orders."""

    first: Access
    second: Access

    def __str__(self) -> str:
        first, second = self.first, self.second
        overlap = min(first.stop, second.stop) - max(first.start, second.start)
        return (
            f"{'write' if second.writes else 'read'} by {second.agent} ({second.what}) does not wait for the "
            f"{'write' if first.writes else 'read'} by {first.agent} ({first.what}): {overlap} bytes"
        )


class TouchedMemory:
    """Who has touched which bytes, as far as it matters to who touches them next.

    Attributes:
        races: found so far.
    """

    def __init__(self) -> None:
        self.races: list[AccessRace] = []
        self._last: dict[int, list[Access]] = {}

    def touch(self, block: int, access: Access, known: Clock) -> None:
        """Notes an access, and every earlier one that conflicts and that its agent knew nothing of.

        Args:
            block: the allocation that the bytes belong to, by address.
            access: what is done.
            known: by its agent, when it does it.
        """
        kept: list[Access] = []
        for other in self._last.get(block, ()):
            if other.stop <= access.start or access.stop <= other.start:
                kept.append(other)
                continue
            is_known = known.knows(other.agent, other.count)
            if (access.writes or other.writes) and not is_known:
                self.races.append(AccessRace(other, access))
            # Whatever comes after this access comes after all that it covers and knew of.
            is_covered = access.start <= other.start and other.stop <= access.stop
            if not (is_covered and is_known and (access.writes or not other.writes)):
                kept.append(other)
        self._last[block] = [*kept, access]
