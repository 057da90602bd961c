"""What a device and an exchange take from each other: copies over PCIe beside the wire, kernels beside compute.

Gloo moves host memory. A message of a device goes to pinned memory, over the wire, and from there to the other device,
piece by piece: while one piece is on the wire, others are copied. A lane makes the copies of both directions in turn,
on one stream. What a step of a program sends, it must have received in the step before, so that a piece's whole way is
the least that a step takes.

NCCL moves a device's own memory, by kernels that take room and memory's rate from compute while they run; so do codecs'
kernels, however messages leave. Copies are made by engines of their own, which take nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from tightwire.architecture.allreduce.traffic import PIECE_BYTES, num_pieces
from tightwire.cluster import Cluster
from tightwire.compression import Codec
from tightwire.profile import Profile
from tightwire.simulate.collective import Collective
from tightwire.transport.pinned import chunk_bytes

# To start a copy and to see its event: what cudaMemcpyAsync and cudaEventSynchronize take together, from memory.
COPY_LATENCY_S = 10e-6


def crossing_s(wire_s: float, copies_s: float, *, steps: int, pieces: int) -> float:
    """Returns how long bytes take that are copied to the host, moved and copied back in pieces.

    Where nothing depends on an arrival (`steps` 1), that is the longer of the two, and the other one's time of one
    piece: the first is copied before it is moved, the last after.

    Args:
        wire_s: all bytes' time on the wire.
        copies_s: all copies', those to the host and those back together.
        steps: messages that wait for one another in a row, all of one size.
        pieces: of each.

    >>> crossing_s(8.0, 4.0, steps=1, pieces=4), crossing_s(4.0, 8.0, steps=1, pieces=4)
    (9.0, 9.0)
    >>> crossing_s(8.0, 4.0, steps=2, pieces=1)
    12.0
    """
    wire_s, copies_s = wire_s / steps, copies_s / steps
    longer_s, alone_s = max(wire_s, copies_s), min(wire_s, copies_s) / pieces
    cycle_s = max(longer_s, (wire_s + copies_s) / pieces)
    return (steps - 1) * cycle_s + longer_s + alone_s


@dataclass(frozen=True, kw_only=True)
class DeviceSharing:
    """Prices what an exchange and a worker's device take from each other.

    Attributes:
        profile: of the worker.
        cluster: of which it says how messages leave the device.
    """

    profile: Profile
    cluster: Cluster

    @property
    def is_pinned(self) -> bool:
        """Whether messages cross pinned memory, on their way to other nodes at least."""
        return self.profile.is_apart and self.cluster.over in ("pinned", "nccl-inside")

    @cached_property
    def _by_host(self) -> Cluster:
        return self.cluster.by_host(1 / self.profile.copy_s_per_byte)

    @cached_property
    def _across(self) -> Cluster:
        return dataclasses.replace(self.cluster, nccl=None)

    def wire_of(self, collective: Collective) -> Cluster:
        """Returns the links that a program's messages take: where they cross the host, not those between devices."""
        if not self.is_pinned:
            return self.cluster
        is_inside = self.cluster.over == "nccl-inside" and collective.name != "native"
        return self._across if is_inside else self._by_host

    def copy_s(
        self, collective: Collective, codec: Codec, numel: int, itemsize: int, sent: int, wire_s: float
    ) -> float:
        """Returns what copies of one bucket's messages add to their time on the wire.

        Args:
            collective: what carries them.
            codec: of the messages.
            numel: elements of the bucket.
            itemsize: bytes of each.
            sent: bytes that the worker sends, and receives.
            wire_s: their time on the wire.
        """
        if not self.is_pinned or not sent:
            return 0.0
        counts, message = collective.counts, codec.wire_bytes(numel, itemsize)
        if collective.name == "native":  # the host sums, and each value crosses once each way
            copied, steps, pieces = message, 1, max(1, -(-message // chunk_bytes(collective.workers)))
        else:
            copied, steps = sent, max(1, counts.steps)
            gathers = codec.combine == "none"
            chunk = message if gathers else numel * itemsize // counts.chunks
            share = 1 if gathers or collective.program is None else collective.program.piece_share
            pieces = max(1, round(num_pieces(chunk, PIECE_BYTES // share) * counts.sends / steps))
        copies_s = 2 * copied * self.profile.copy_s_per_byte
        moving_s = crossing_s(wire_s, copies_s, steps=steps, pieces=pieces)
        return moving_s - wire_s + 2 * steps * COPY_LATENCY_S

    def stolen_s(self, work_s: float, moving_s: float) -> float:
        """Returns what compute loses on the device while an exchange is beside it.

        Args:
            work_s: of codecs' kernels and passes over memory.
            moving_s: of the program, its latency included.
        """
        if not self.profile.is_apart:
            return 0.0
        by_nccl_s = 0.0 if self.is_pinned else (1 - 1 / self.profile.nccl_slowdown) * moving_s
        return self.profile.kernel_share * work_s + by_nccl_s
