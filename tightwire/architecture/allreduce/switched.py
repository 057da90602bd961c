"""All-reduce by a switch that adds: what travels, as one definition for averager and predictions.

A bucket goes up as integers and comes down as their sums, chunk by chunk, each chunk in a slot of the switch. N bytes
up and N down, where a ring needs 2N(n − 1)/n each way.
"""

from __future__ import annotations

from tightwire.compression.codec import Codec
from tightwire.transport.adding import SUM_BYTES

SWITCHED = "in-network"
SWITCHED_TITLE = "A switch adds: once up and once down"
SWITCHED_PAPER = (
    "Sapio et al. 2021, SwitchML, arXiv:1903.06701; Lao et al. 2021, ATP, NSDI; Li et al. 2024, THC, NSDI"
)
DEFAULT_SLOT_BYTES = 64 * 1024
# Magnitudes of a chunk, as agreed on; what ranks tell one another at the end of a run.
LARGEST_BYTES, OUTCOME_BYTES = 4, 8


def integer_bytes(codec: Codec) -> int:
    """Returns the bytes of an integer that a worker sends: 1 of 8-bit codecs, 4 of values as they are."""
    return 4 if codec.lossless else 1


def chunk_numel(codec: Codec, slot_bytes: int) -> int:
    """Returns the elements whose sums fill a slot."""
    return slot_bytes // SUM_BYTES[integer_bytes(codec)]


def num_chunks(codec: Codec, numel: int, slot_bytes: int) -> int:
    """Returns the chunks of a bucket."""
    return -(-numel // chunk_numel(codec, slot_bytes))


def switched_bytes(codec: Codec, numel: int, num_ranks: int, slot_bytes: int = DEFAULT_SLOT_BYTES) -> int:
    """Returns the payload bytes that a rank sends: integers, a magnitude per chunk, and how it ended to all others.

    >>> from tightwire.compression import Identity
    >>> switched_bytes(Identity(), 1_000_000, 4)
    4000272
    """
    if num_ranks == 1 or numel == 0:
        return 0
    magnitudes = LARGEST_BYTES * num_chunks(codec, numel, slot_bytes)
    return numel * integer_bytes(codec) + magnitudes + OUTCOME_BYTES * (num_ranks - 1)
