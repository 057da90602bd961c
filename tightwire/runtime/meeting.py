"""Meetings: where all members come to, with nothing under way, to say what they are about to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any, Final, Literal, get_args

from tightwire.runtime.reading import MOST, readable
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
        behind: steps that others made at ends before, and it did not.
        waited_s: how long it only waited for others, so far.
        plan: that it goes on with (turn).
        asked: what is wanted from then on, with its phases (turn); empty: as before.
        goes_back: whether it does so from an earlier state, which those that are finished do not have (turn).
        measured: what it measured (rebuild), in the form of `Observed.state`.
        answer: to the question that all ask.
    """

    why: Why
    step: int = 0
    behind: int = 0
    waited_s: float = 0.0
    plan: str = ""
    asked: str = ""
    goes_back: bool = False
    measured: list[Any] | None = None
    answer: str = ""

    @classmethod
    def of(cls, data: bytes) -> News | None:
        """Reads what a member said; None for whatever is nothing like it, however malformed."""
        with suppress(ValueError, RecursionError):
            return cls.of_values(json.loads(data))
        return None

    @classmethod
    def of_values(cls, content: Any) -> News | None:
        """Reads the same from plain values."""
        known = isinstance(content, dict) and content.keys() <= _TYPES.keys() and "why" in content
        if not known or any(type(value) not in _TYPES[name] for name, value in content.items()):
            return None
        news = cls(**content)
        counts = all(0 <= number < MOST for number in (news.step, news.behind, news.waited_s))
        is_whole = news.measured is None or _is_measured(news.measured)
        return news if news.why in get_args(Why) and counts and is_whole else None


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "why": (str,),
    "step": (int,),
    "behind": (int,),
    "waited_s": (float, int),
    "plan": (str,),
    "asked": (str,),
    "goes_back": (bool,),
    "measured": (list, NoneType),
    "answer": (str,),
}


def _is_measured(state: list[Any]) -> bool:
    """Whether this is of the form of `Observed.state`."""
    if len(state) != 3 or not isinstance(state[0], dict):
        return False
    return all(
        type(number) in (int, float) and 0 <= number < MOST for number in (*state[0].values(), *state[1:])
    )


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

    @property
    def most_steps(self) -> Sequence[int]:
        """By rank, steps made, as if each had made as many as any at all ends before."""
        return [news.step + news.behind for news in self.news]

    def first(self, why: Why) -> News | None:
        """Returns what the lowest rank said that came for a reason."""
        ranks = self.of(why)
        return self.news[ranks[0]] if ranks else None

    def to_list(self) -> list[dict[str, Any]]:
        """Returns plain values; see `of_list`."""
        return [asdict(news) for news in self.news]

    @classmethod
    def of_list(cls, told: Sequence[Any]) -> Told | None:
        """Returns what `to_list` was called on; None for whatever is nothing like it."""
        news = [News.of_values(other) for other in told]
        return None if None in news else cls(tuple(one for one in news if one is not None))

    @property
    def measured(self) -> list[Any] | None:
        """What the lowest rank that measured anything measured."""
        return next((news.measured for news in self.news if news.measured is not None), None)


def meet(transport: Transport, news: News) -> Told:
    """Tells all members, and returns what all say.

    Contract: every member, after its engine's flush; blocks.
    """
    told = readable(transport.exchange(json.dumps(asdict(news)).encode()), News.of)
    return Told(tuple(told))
