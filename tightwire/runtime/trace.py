"""What happened when: spans on tracks, written as a trace that Perfetto and chrome://tracing load."""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, final

from torch import Tensor

from tightwire import files
from tightwire.compression.codec import Codec

Track = Literal["compute", "communication", "codec"]
TRACKS: tuple[Track, ...] = ("compute", "communication", "codec")
# Bounds the memory of a long run, to 4 MB: the newest spans are kept.
MAX_SPANS = 20_000


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from `start_s` to `end_s`, in seconds of `time.perf_counter`."""

    track: Track
    name: str
    start_s: float
    end_s: float


class Tracer:
    """Collects the newest spans of one worker; cheap enough to be always on."""

    def __init__(self) -> None:
        # Plain tuples: Python's collector does not visit them, as it would as many objects.
        self._spans = collections.deque[tuple[Track, str, float, float]](maxlen=MAX_SPANS)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The newest, in the order in which they ended."""
        return tuple(Span(*span) for span in tuple(self._spans))

    def record(self, track: Track, name: str, start_s: float, end_s: float) -> None:
        """Adds a span."""
        self._spans.append((track, name, start_s, end_s))

    @contextlib.contextmanager
    def span(self, track: Track, name: str) -> Iterator[None]:
        """Adds the time spent inside as a span."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.record(track, name, start_s, time.perf_counter())

    def write(self, path: str | pathlib.Path, rank: int) -> None:
        """Writes the Trace Event Format: one process per rank, one thread per track, times in microseconds."""
        names = [_metadata("process_name", rank, 0, f"rank {rank}")]
        names += [_metadata("thread_name", rank, thread, track) for thread, track in enumerate(TRACKS)]
        events = [
            {
                "ph": "X",
                "pid": rank,
                "tid": TRACKS.index(span.track),
                "name": span.name,
                "cat": span.track,
                "ts": span.start_s * 1e6,
                "dur": (span.end_s - span.start_s) * 1e6,
            }
            for span in self.spans
        ]
        files.write_text(path, json.dumps({"traceEvents": names + events}))


def _metadata(kind: str, rank: int, thread: int, name: str) -> dict[str, object]:
    return {"ph": "M", "pid": rank, "tid": thread, "name": kind, "args": {"name": name}}


def traced(codec: Codec, tracer: Tracer) -> Codec:
    """Returns the codec with its encoding and decoding on the tracer's codec track."""
    return codec if codec.lossless else Traced(codec, tracer)


@final
@dataclass(frozen=True)
class Traced(Codec):
    """A codec seen through a tracer; everything but the two hot calls is the codec's own."""

    _codec: Codec
    _tracer: Tracer = field(compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "combine", self._codec.combine)
        object.__setattr__(self, "sums_as", self._codec.sums_as)
        object.__setattr__(self, "unbiased", self._codec.unbiased)
        object.__setattr__(self, "largest", self._codec.largest)
        object.__setattr__(self, "selects", self._codec.selects)
        object.__setattr__(self, "orthogonal", self._codec.orthogonal)

    def __str__(self) -> str:
        return str(self._codec)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns the codec's own; see `Codec.wire_bytes`."""
        return self._codec.wire_bytes(numel, itemsize)

    def contraction(self, numel: int) -> float | None:
        """Returns the codec's own; see `Codec.contraction`."""
        return self._codec.contraction(numel)

    def normal_error(self, numel: int) -> float:
        """Returns the codec's own; see `Codec.normal_error`."""
        return self._codec.normal_error(numel)

    def shared_levels(self, num_ranks: int) -> int | None:
        """Returns the codec's own; see `Codec.shared_levels`."""
        return self._codec.shared_levels(num_ranks)

    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Encodes within a span; see `Codec.encode`."""
        with self._tracer.span("codec", f"encode {self._codec}"):
            self._codec.encode(x, message, seed=seed)

    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Decodes within a span; see `Codec.decode`."""
        with self._tracer.span("codec", f"decode {self._codec}"):
            self._codec.decode(message, out, add=add)
