"""What workers and a switch that adds tell one another: the format of their messages, and where the switch is.

A worker's connection to the switch carries messages of a header and, for some kinds, numbers. Of a run's chunks a
worker sends each as integers (ADD), and beside it the largest magnitude of the chunk that is a window further on; once
all workers' have come, the switch answers each of them with the sums and the largest of the magnitudes. So the step of
a chunk's integers is agreed a window before the chunk is sent, without a message of its own (SwitchML, section 3.7);
those of the first window are sent together (LARGEST). What finds no slot is refused, to all workers alike.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tightwire import units
from tightwire.errors import TransportError, UnitError

# Kind, bytes per integer, run, chunk, bytes of the payload, largest magnitude as the bits of a float32, which are
# ordered as the magnitudes are, infinity and NaN last.
HEADER = struct.Struct("<BBxxIIIIxxxxxxxxxxxx")
HELLO, LARGEST, ADD, REFUSED, PING, PONG = range(1, 7)
GREETING = struct.Struct("<16sHH")  # job, rank, workers
# What sums of integers of a size are kept in: n workers' integers of 8 bits fit 16, and of 32 bits are small enough.
SUM_BYTES = {1: 2, 4: 4}
ALIGN_BYTES = 8


def padding(num_bytes: int) -> int:
    """Returns how many bytes follow a payload, so that every message begins where integers may.

    >>> padding(5), padding(16)
    (3, 0)
    """
    return -num_bytes % ALIGN_BYTES


@dataclass(frozen=True, kw_only=True)
class SwitchAddress:
    """A switch that adds.

    Attributes:
        host: its address.
        port: that it listens on.
        slots: how many chunks it can add up at a time, of all workers and jobs together.
        slot_bytes: of the sums of a chunk.
    """

    host: str
    port: int
    slots: int
    slot_bytes: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port},slots={self.slots},slot={self.slot_bytes}"

    @classmethod
    def parse(cls, text: str) -> SwitchAddress:
        """Reads what `str` writes.

        >>> SwitchAddress.parse("10.0.0.1:29400,slots=64,slot=64KiB").slot_bytes
        65536

        Raises:
            TransportError: another text, or a switch without memory.
        """
        try:
            place, *fields = text.split(",")
            host, _, port = place.rpartition(":")
            told = dict(field.split("=") for field in fields)
            slots, slot_bytes = check_pool(int(told.pop("slots")), units.parse_bytes(told.pop("slot")))
            if told or not host:
                raise ValueError(text)
            return cls(host=host, port=int(port), slots=slots, slot_bytes=slot_bytes)
        except (ValueError, KeyError, UnitError):
            raise TransportError(
                f"{text!r} is no switch that adds; write for example 10.0.0.1:29400,slots=64,slot=64KiB."
            ) from None


def check_pool(slots: int, slot_bytes: int) -> tuple[int, int]:
    """Returns the pool of a switch.

    Raises:
        TransportError: one that holds nothing.
    """
    if slots < 1 or slot_bytes < 1024 or slot_bytes % ALIGN_BYTES:
        raise TransportError(
            f"a switch with {slots} slots of {slot_bytes} bytes has no memory to add in: write at least one slot of "
            f"1 KiB or more, a multiple of {ALIGN_BYTES} bytes, as in slots=64,slot=64KiB."
        )
    return slots, slot_bytes
