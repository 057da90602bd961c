"""What precedes every gossip message.

Its round in 32 bits, its sender in 16, 16 of a digest of what must be equal on all workers, a push-sum weight in 64.
"""

from __future__ import annotations

from typing import Final

from tightwire.architecture.gossip.graphs import Graph
from tightwire.architecture.gossip.rounds import round_program

HEADER_BYTES: Final = 16


def round_bytes(graph: Graph, round_number: int, rank: int, message_bytes: int) -> int:
    """Returns the payload bytes that `rank` sends in a round for one bucket, whose message has `message_bytes`."""
    program = round_program(graph.at(round_number))
    return program.bytes_sent(rank, [HEADER_BYTES + message_bytes] * graph.num_ranks)
