"""What processes tell each other in datagrams about who lives: JSON of a few fields, each checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

from tightwire.transport.blame import Reason

Kind = Literal["ask", "here", "left", "verdict", "done"]

MAX_TEXT: Final = 500
MAX_MESSAGE_BYTES: Final = 60_000


@dataclass(frozen=True, kw_only=True)
class Message:
    """One datagram's content.

    Attributes:
        kind: `ask` wants a `here`; `left`, `verdict` and `done` are told unasked.
        sender: world rank.
        number: of the question, which the answer repeats.
        waits: whom the sender waits for (here), or who is to blame (verdict).
        age_s: for how long it has waited for any of them.
        is_blocked: whether its main thread waits too, and no bytes move on its connections.
        is_moving: whether bytes were seen to move on them.
        place: where in the program its main thread is, as in "train.py:45 in evaluate".
        gave_up: whether the sender went on without whom it tells this (here, left).
        reason: why ranks are to blame (verdict).
        note: an error's text.
        done: the number that the sender announced last.
    """

    kind: Kind
    sender: int
    number: int = 0
    waits: tuple[int, ...] = field(default=())
    age_s: float = 0.0
    is_blocked: bool = False
    is_moving: bool = False
    place: str = ""
    gave_up: bool = False
    reason: Reason = "silent"
    note: str = ""
    done: int = 0

    def to_bytes(self) -> bytes:
        """Returns the message as JSON, in which defaults are left out."""
        fields = {k: v for k, v in asdict(self).items() if v or k in ("kind", "sender")}
        return json.dumps(fields).encode()

    @classmethod
    def of(cls, data: bytes, size: int) -> Message | None:
        """Reads a message; None for whatever is none of a world of `size` ranks, however malformed."""
        if len(data) > MAX_MESSAGE_BYTES:
            return None
        try:
            return cls(**_checked(json.loads(data), size))
        except (ValueError, TypeError, RecursionError):
            return None


def _checked(content: Any, size: int) -> Mapping[str, Any]:
    """Returns the fields of a message.

    Raises:
        TypeError: a field is unknown, or of another type.
        ValueError: a value is out of its range.
    """
    if not isinstance(content, dict):
        raise TypeError("a message is a JSON object")
    for name, value in content.items():
        if name == "waits":
            if not isinstance(value, list) or len(value) > size:
                raise TypeError(name)
            for rank in value:
                _check_rank(rank, size)
        elif name == "sender":
            _check_rank(value, size)
        elif type(value) not in _TYPES.get(name, ()):
            raise TypeError(name)
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(name)
    if content.get("kind") not in get_args(Kind) or content.get("reason", "silent") not in get_args(Reason):
        raise ValueError("kind or reason")
    if not 0 <= content.get("age_s", 0.0) < 1e9 or not all(
        0 <= content.get(name, 0) < 2**63 for name in ("number", "done")
    ):
        raise ValueError("age_s, number or done")
    return {**content, "waits": tuple(content.get("waits", ()))}


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "kind": (str,),
    "number": (int,),
    "age_s": (float, int),
    "is_blocked": (bool,),
    "is_moving": (bool,),
    "place": (str,),
    "gave_up": (bool,),
    "reason": (str,),
    "note": (str,),
    "done": (int,),
}


def _check_rank(value: object, size: int) -> None:
    if type(value) is not int:
        raise TypeError("a rank is an int")
    if not 0 <= value < size:
        raise ValueError("a rank of this world")
