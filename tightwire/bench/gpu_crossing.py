"""A message's way through pinned memory in virtual time: the real code, with a rate for copies and one for the wire.

Nothing is measured: it shows whether copies and the wire overlap in the order in which they are asked for, and says
what that would take at given rates.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tightwire.architecture import AllReduce, Runner
from tightwire.compression import Identity
from tightwire.devices.traced import KIND, TracedDevice, VirtualTime
from tightwire.transport import Transport, Work, native_bytes, run_threads
from tightwire.transport.pinned import Pinned
from tightwire.transport.wrapper import Wrapper

# PCIe 4.0 × 16 and lines of Ethernet, payload; the fastest is about as fast as copies both ways.
PCIE_BYTES_PER_S = 24e9
WIRES = {"10 Gb/s": 1.2e9, "25 Gb/s": 3.0e9, "100 Gb/s": 12e9}
PROGRAMS = ("native", "ring")
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """One bucket's sum by way of pinned memory, in virtual seconds.

    Attributes:
        program: that sums.
        wire: the line of each worker.
        wire_s: the bytes' time on it.
        copies_s: that of the copies to the host and back.
        simulated_s: of both together, as the code asks for them.
        ratio: over the longer of the two.
    """

    program: str
    wire: str
    wire_s: float
    copies_s: float
    simulated_s: float
    ratio: float


def crossings(device: TracedDevice, num_bytes: int) -> list[Crossing]:
    """Returns what a sum of so many bytes takes by each program over each wire."""
    return [_crossing(device, num_bytes, program, wire) for program in PROGRAMS for wire in WIRES]


def _crossing(device: TracedDevice, num_bytes: int, program: str, wire: str) -> Crossing:
    rate, numel, at = WIRES[wire], num_bytes // 4, torch.device(KIND, 0)
    device.restart()
    device.timing = timing = VirtualTime(PCIE_BYTES_PER_S)
    line = TimedLine(timing, rate)

    def work(transport: Transport) -> float:
        with device.side(at):
            x = torch.ones(numel, device=at)
            device.wait(device.mark(at))
            runner = Runner(
                AllReduce(program).program(Identity(), transport.size),
                Pinned(TimedWire(transport, line)),
                numel=numel,
                dtype=x.dtype,
                codec=Identity(),
                device=at,
            )
            began_s = timing.host_s
            runner.run(x, x, seed=0)
            device.wait(device.mark(at))
            return timing.host_s - began_s

    try:
        simulated_s = max(run_threads(WORKERS, work, deadline_s=300.0))
    finally:
        device.timing = None
    wire_s = native_bytes(numel, 4, WORKERS, 0) / rate
    # A ring of two sends and receives as much as it sums.
    copies_s = 2 * num_bytes / PCIE_BYTES_PER_S
    return Crossing(
        program=program, wire=wire, wire_s=wire_s, copies_s=copies_s, simulated_s=simulated_s,
        ratio=simulated_s / max(wire_s, copies_s),
    )  # fmt: skip


class TimedLine:
    """What all ranks share: the rate of their lines, and when each message arrives."""

    def __init__(self, timing: VirtualTime, bytes_per_s: float) -> None:
        self.timing, self.bytes_per_s = timing, bytes_per_s
        self.arrivals: defaultdict[tuple[int, int, int], deque[float]] = defaultdict(deque)
        self.lock = threading.Lock()


@final
class TimedWire(Wrapper):
    """Gives messages between threads a time: bytes over the sender's line, one message after the other."""

    def __init__(self, inner: Transport, line: TimedLine) -> None:
        super().__init__(inner)
        self._line, self._free_s = line, 0.0

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Notes when the message arrives."""
        self._free_s = max(self._free_s, self._line.timing.host_s) + tensor.nbytes / self._line.bytes_per_s
        with self._line.lock:
            self._line.arrivals[self.rank, dst, tag].append(self._free_s)
        return _Timed(self.inner.isend(tensor, dst, tag), self._line, self._free_s, None)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        """Has who waits wait until then."""
        return _Timed(self.inner.irecv(tensor, src, tag), self._line, 0.0, (src, self.rank, tag))

    def all_reduce(self, tensor: Tensor) -> Work:
        """Takes what a ring would."""
        sent = native_bytes(tensor.numel(), tensor.element_size(), self.size, self.rank)
        self._free_s = max(self._free_s, self._line.timing.host_s) + sent / self._line.bytes_per_s
        return _Timed(self.inner.all_reduce(tensor), self._line, self._free_s, None)

    def wrap(self, child: Transport, ranks: Sequence[int]) -> Transport:
        """Wraps a channel or a group, over the same line."""
        return TimedWire(child, self._line)


class _Timed:
    """A message that is over at a known time, or when its sender said."""

    def __init__(
        self, work: Work, line: TimedLine, end_s: float, address: tuple[int, int, int] | None
    ) -> None:
        self._work, self._line, self._end_s, self._address = work, line, end_s, address

    def wait(self) -> None:
        self._work.wait()
        if self._address is not None:
            with self._line.lock:
                self._end_s = self._line.arrivals[self._address].popleft()
            self._address = None
        self._line.timing.wait_until(self._end_s)

    def attend(self) -> bool:
        self.wait()
        return True
