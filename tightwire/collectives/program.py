"""A collective is data: who sends which chunk to whom, in which step, to be copied or added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Transfer:
    """One chunk on its way in one step.

    `op` says what the receiver does: `reduce` adds it to its own value of the chunk, `copy` replaces it.
    All transfers of a step read the values that their senders had before the step.
    """

    step: int
    src: int
    dst: int
    chunk: int
    op: Literal["copy", "reduce"]
    weight: float = 1.0


@dataclass(frozen=True)
class Program:
    """A collective over `num_ranks` ranks.

    Attributes:
        name: as in `allreduce:NAME`.
        num_ranks: N.
        num_chunks: C; a reducing program splits its buffer into C nearly equal chunks, a gathering one has
            one chunk per rank, each a whole message.
        transfers: ordered by step.
        gathers: False: every rank begins with a contribution to every chunk, and ends with the sum of all.
            True: rank r begins with chunk r alone, and every rank ends with all chunks, to be decoded and
            summed in rank order.
    """

    name: str
    num_ranks: int
    num_chunks: int
    transfers: tuple[Transfer, ...]
    gathers: bool = False

    def chunk_sizes(self, numel: int, multiple: int = 1) -> tuple[int, ...]:
        """Splits `numel` elements into chunks, nearly equal, all but the last a multiple of `multiple`."""
        raise NotImplementedError

    def bytes_sent(self, rank: int, chunk_bytes: Sequence[int]) -> int:
        """Returns the payload bytes that `rank` sends when chunk c is `chunk_bytes[c]` bytes on the wire."""
        return sum(chunk_bytes[t.chunk] for t in self.transfers if t.src == rank)
