"""Meetings: where all members come to, with nothing under way, to say what they are about to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tightwire.transport import Transport

# finish: its data is over. turn: goes on under another plan. rebuild: goes on under the same plan, with what was
# measured. ask: wants an answer from the rank that knows. stay, leave: some leave for good, and the others stay. join:
# somebody waits to be let in.
Why = Literal["finish", "turn", "rebuild", "ask", "stay", "leave", "join"]


@dataclass(frozen=True, kw_only=True)
class News:
    """What one member says.

    Attributes:
        why: it came.
        step: steps that it has made.
        waited_s: how long it only waited for others, so far.
        plan: that it goes on with (turn).
        goes_back: whether it does so from an earlier state, which those that are finished do not have (turn).
        measured: what it measured (rebuild), in the form of `Observed.state`.
        answer: to the question that all ask.
    """

    why: Why
    step: int = 0
    waited_s: float = 0.0
    plan: str = ""
    goes_back: bool = False
    measured: list[Any] | None = None
    answer: str = ""


@dataclass(frozen=True)
class Told:
    """What all said, by rank: the same on every member."""

    news: tuple[News, ...]

    def of(self, why: Why) -> list[int]:
        """Returns the ranks that came for a reason."""
        return [rank for rank, news in enumerate(self.news) if news.why == why]

    @property
    def are_finished(self) -> bool:
        """Whether nobody trains on."""
        return all(news.why == "finish" for news in self.news)

    def first(self, why: Why) -> News | None:
        """Returns what the lowest rank said that came for a reason."""
        ranks = self.of(why)
        return self.news[ranks[0]] if ranks else None

    def to_list(self) -> list[dict[str, Any]]:
        """Returns plain values; see `of_list`."""
        return [asdict(news) for news in self.news]

    @classmethod
    def of_list(cls, told: Sequence[dict[str, Any]]) -> Told:
        """Returns what `to_list` was called on."""
        return cls(tuple(News(**other) for other in told))

    @property
    def measured(self) -> list[Any] | None:
        """What the lowest rank that measured anything measured."""
        return next((news.measured for news in self.news if news.measured is not None), None)


def meet(transport: Transport, news: News) -> Told:
    """Tells all members, and returns what all say.

    Contract: every member, after its engine's flush; blocks.
    """
    told: Sequence[bytes] = transport.exchange(json.dumps(asdict(news)).encode())
    return Told(tuple(News(**json.loads(other)) for other in told))
