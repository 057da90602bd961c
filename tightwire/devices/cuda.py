"""CUDA devices: a stream per lane, events for marks, pinned memory for copies.

Nothing is said of CUDA before a tensor lives there. What runs in a stream follows only what it was told to: torch's own
current stream for what the training loop asks for, and a stream per lane for what averages. Memory that a lane's stream
reads is held by buckets for as long as the run lasts, so the caching allocator never hands it out meanwhile.

Which stream is current, torch keeps by thread and by device; which device is current, by thread alone. A replica may
live on `cuda:1` in a thread whose current device is `cuda:0`, so that every call here names the device.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, final

from tightwire.devices.device import Device, DeviceMemory, Mark
from tightwire.devices.pool import PinnedPool
from tightwire.errors import AttachError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Triton needs tensor cores' generation at least; older devices run what torch still supports, untested.
OLDEST_CAPABILITY = (7, 0)

CAPTURED = (
    "a CUDA graph is being captured, and averaging over workers cannot be part of one: its messages are sent by the "
    "host. Attach and train outside torch.cuda.graph(); capture forward and backward of parts with "
    "torch.cuda.make_graphed_callables instead, before the model is attached."
)


@final
class CudaMark(Mark):
    """An event on the stream that was current."""

    def __init__(self, event: torch.cuda.Event, at: torch.device) -> None:
        self.event, self.at = event, at


@final
class Cuda(Device):
    """Devices of type `cuda`; torch's builds for AMD call theirs so too, and nothing is promised of them."""

    kind = "cuda"
    is_host = False

    def __init__(self) -> None:
        self._pool = PinnedPool(_pin, self.wait)
        self._local = threading.local()

    def mark(self, at: torch.device) -> Mark:
        """Records an event on the device's current stream, without timing, which would cost more.

        Each mark has an event of its own: one that is recorded anew would move what others are about to follow.
        """
        import torch

        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(at))
        return CudaMark(event, at)

    def follow(self, mark: Mark) -> None:
        """Has the current stream of the mark's device wait for the event."""
        import torch

        assert isinstance(mark, CudaMark)
        torch.cuda.current_stream(mark.at).wait_event(mark.event)

    def wait(self, mark: Mark) -> None:
        """Waits for the event."""
        assert isinstance(mark, CudaMark)
        mark.event.synchronize()

    def drain(self, at: torch.device) -> None:
        """Waits for all streams of the device."""
        import torch

        torch.cuda.synchronize(at)

    def time_s(self, work: Callable[[], object], at: torch.device) -> float:
        """Returns the seconds between two events, what the device waited for Python in between included."""
        import torch

        self.drain(at)
        stream = torch.cuda.current_stream(at)
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record(stream)
        work()
        ended.record(stream)
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3

    @contextlib.contextmanager
    def side(self, like: torch.device) -> Iterator[None]:
        """Makes the device and a stream of this thread's own current in it; at first it follows nothing.

        At the end the host waits for the stream, so that memory which only its work still uses may be given back. The
        thread's next one is the same: torch keeps freed memory by stream, and would keep it for every one of many.
        """
        import torch

        streams: dict[int, torch.cuda.Stream] = self._local.__dict__.setdefault("streams", {})
        with torch.cuda.device(like):
            at = torch.cuda.current_device()
            if at not in streams:
                streams[at] = torch.cuda.Stream()
            stream = streams[at]
            with torch.cuda.stream(stream):
                yield
            stream.synchronize()

    def current(self, at: torch.device) -> contextlib.AbstractContextManager[None]:
        """Makes the device current: a thread begins at `cuda:0`, and its first call would take memory there."""
        import torch

        return torch.cuda.device(at)

    def pinned(self, num_bytes: int) -> Tensor:
        """Returns page-locked memory from the pool."""
        return self._pool.take(num_bytes)

    def give_back(self, memory: Tensor, after: Mark | None = None) -> None:
        """Returns it to the pool."""
        self._pool.put(memory, after)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Starts an asynchronous copy on the current stream."""
        target.copy_(source, non_blocking=True)

    def count(self) -> int:
        """Returns how many devices torch sees."""
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def random_state(self, at: torch.device) -> Tensor:
        """Returns that of torch's CUDA generator."""
        import torch

        return torch.cuda.get_rng_state(at)

    def set_random_state(self, at: torch.device, state: Tensor) -> None:
        """Gives it to torch's CUDA generator; one of another kind of device is left out."""
        import torch

        if state.numel():
            torch.cuda.set_rng_state(state, at)

    def identity(self, device: torch.device) -> str:
        """Returns the device's name and UUID."""
        import torch

        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} {properties.uuid}"

    def facts(self, device: torch.device) -> dict[str, object]:
        """Returns the card, its memory and capability, the toolkit of torch's build, and how many there are."""
        import torch

        properties = torch.cuda.get_device_properties(device)
        return {
            "card": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "devices": self.count(),
        }

    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        """Returns what torch's allocator has handed out to this process, whoever asked."""
        import torch

        seen = set(devices)
        return DeviceMemory(
            allocated_bytes=sum(torch.cuda.memory_allocated(device) for device in seen),
            peak_bytes=sum(torch.cuda.max_memory_allocated(device) for device in seen),
            pinned_bytes=self._pool.num_bytes,
        )

    def forget_peak(self, device: torch.device) -> None:
        """Empties torch's cache, and has its peak begin at what is allocated now."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    def require_order(self, at: torch.device) -> None:
        """Refuses to be part of a CUDA graph.

        Raises:
            AttachError: the current stream is being captured.
        """
        import torch

        # Of the current device's current stream, which is the one that backward runs on.
        if torch.cuda.is_current_stream_capturing():
            raise AttachError(CAPTURED)

    def require_usable(self, device: torch.device) -> None:
        """Makes sure that torch can use the device, and that no CUDA graph is being captured.

        Raises:
            AttachError: what is missing.
        """
        import torch

        if not torch.cuda.is_available():
            raise AttachError(
                f"the model is on {device}, and this torch ({torch.__version__}) has no CUDA, or sees no device: "
                "install a build with CUDA, or move the model to the CPU."
            )
        self.require_order(device)
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY:
            raise AttachError(
                f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; kernels "
                f"need {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} or later. Train on the CPU, or stay with "
                "DistributedDataParallel."
            )


def _pin(num_bytes: int) -> Tensor:
    import torch

    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
