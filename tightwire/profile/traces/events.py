"""The events of a trace, as values; and what they call dtypes."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tightwire import files
from tightwire.errors import FileError

# Bytes of an element, by the names that c10, torch and NCCL give dtypes; case, `c10::`, `torch.` and `_` do not count.
ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("float", "float32", "fp32", "int", "int32", "uint32", "signedint", "unsignedint"), 4),
    **dict.fromkeys(("double", "float64", "fp64", "long", "int64", "uint64", "longint"), 8),
    **dict.fromkeys(("complexfloat", "complex64"), 8),
    **dict.fromkeys(("half", "float16", "fp16", "bfloat16", "bf16", "short", "int16", "uint16"), 2),
    **dict.fromkeys(("byte", "char", "int8", "uint8", "bool", "signedchar", "unsignedchar"), 1),
    **dict.fromkeys(("complexdouble", "complex128"), 16),
    **dict.fromkeys(("complexhalf", "complex32"), 4),
}
# What kineto writes for numbers that are none, and JSON does not know.
BARE = re.compile(r"(:\s*)(?:[-+]?(?:inf(?:inity)?|nan)|N/A)(?=\s*[,}\]])", re.IGNORECASE)
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
# Categories as PyTorch wrote them before 1.11.
OLD_CATEGORIES = {
    "operator": "cpu_op",
    "runtime": "cuda_runtime",
    "memcpy": "gpu_memcpy",
    "memset": "gpu_memset",
}


@dataclass(frozen=True, slots=True)
class Event:
    """A complete event. Times in seconds of the trace's clock.

    Attributes:
        name: of it.
        category: such as `cpu_op`, `kernel`, `cuda_runtime`.
        thread: or stream, of its process.
        start_s: its beginning.
        end_s: its end.
        args: what else the profiler knows.
    """

    name: str
    category: str
    thread: tuple[str, str]
    start_s: float
    end_s: float
    args: Mapping[str, Any]

    @property
    def is_on_device(self) -> bool:
        """Whether a device does it, and not the host."""
        return self.category in DEVICE

    @property
    def is_exchange(self) -> bool:
        """Whether it moves bytes between ranks."""
        return "Collective name" in self.args or self.name.lower().startswith("nccl")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One rank's trace: its complete events by their beginnings, and what it says of the job."""

    path: str
    events: tuple[Event, ...]
    about: Mapping[str, Any]


def read(path: str | pathlib.Path) -> Trace:
    """Returns a trace, packed by gzip or not; `inf`, `nan` and `N/A` stand for nothing.

    Raises:
        FileError: unreadable, or no trace.
    """
    text = files.read_text(path)
    try:
        trace = files.parse_json(text, str(path))
    except FileError:
        trace = files.parse_json(BARE.sub(r"\1null", text), str(path))
    events = trace.get("traceEvents") if isinstance(trace, dict) else trace
    if not isinstance(events, list):
        raise FileError(f"{path} is no trace; write one with torch.profiler's export_chrome_trace.")
    about = trace.get("distributedInfo") if isinstance(trace, dict) else None
    found = [made for event in events if isinstance(event, dict) and (made := _event(event)) is not None]
    return Trace(
        path=str(path),
        events=tuple(sorted(found, key=lambda event: event.start_s)),
        about=about if isinstance(about, dict) else {},
    )


def item_bytes(dtype: object, path: str) -> int:
    """Returns the bytes of an element.

    >>> item_bytes("c10::BFloat16", ""), item_bytes("torch.float32", ""), item_bytes("Float8_e4m3fn", "")
    (2, 4, 1)

    Raises:
        FileError: a dtype that nobody knows, named.
    """
    words = re.sub(r"^(c10::|torch\.|at::)|[_ ]", "", str(dtype).strip().lower())
    known = 1 if words.startswith("float8") else ITEM_BYTES.get(words)
    if known is None:
        raise FileError(
            f"{path}: the dtype {str(dtype)[:40]!r} is not known; known: {', '.join(ITEM_BYTES)}."
        )
    return known


def _event(event: Mapping[str, Any]) -> Event | None:
    """Returns a complete event; None for other phases, and where times are no numbers."""
    start, length = _number(event.get("ts")), _number(event.get("dur"))
    if event.get("ph") != "X" or start is None or length is None or length < 0:
        return None
    args, category = event.get("args"), str(event.get("cat", "")).lower()
    return Event(
        name=str(event.get("name", "")),
        category=OLD_CATEGORIES.get(category, category),
        thread=(str(event.get("pid")), str(event.get("tid"))),
        start_s=start / 1e6,
        end_s=(start + length) / 1e6,
        args=args if isinstance(args, dict) else {},
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 1e18 else None
