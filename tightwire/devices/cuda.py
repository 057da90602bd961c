"""CUDA devices: a stream per lane, events for marks, pinned memory for copies.

Nothing is said of CUDA before a tensor lives there. What runs in a stream follows only what it was told to: torch's own
current stream for what the training loop asks for, and a stream per lane for what averages. Memory that a lane's stream
reads is held by buckets for as long as the run lasts, so the caching allocator never hands it out meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, final

from tightwire.devices.device import Device, DeviceMemory, Mark
from tightwire.devices.pool import PinnedPool
from tightwire.errors import AttachError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Triton needs tensor cores' generation at least; older devices run what torch still supports, untested.
OLDEST_CAPABILITY = (7, 0)


@final
class CudaMark(Mark):
    """An event on the stream that was current."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event


@final
class Cuda(Device):
    """Devices of type `cuda`; torch's builds for AMD call theirs so too, and nothing is promised of them."""

    kind = "cuda"
    is_host = False

    def __init__(self) -> None:
        self._pool = PinnedPool(_pin, self.wait)

    def mark(self) -> Mark:
        """Records an event on the current stream, without timing, which would cost more."""
        import torch

        event = torch.cuda.Event()
        event.record()
        return CudaMark(event)

    def follow(self, mark: Mark) -> None:
        """Has the current stream wait for the event."""
        import torch

        assert isinstance(mark, CudaMark)
        torch.cuda.current_stream().wait_event(mark.event)

    def wait(self, mark: Mark) -> None:
        """Waits for the event."""
        assert isinstance(mark, CudaMark)
        mark.event.synchronize()

    @contextlib.contextmanager
    def side(self, like: torch.device) -> Iterator[None]:
        """Makes a stream and the device current in this thread, whose first work follows what was asked for before."""
        import torch

        with torch.cuda.device(like):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                yield
            stream.synchronize()

    def pinned(self, num_bytes: int) -> Tensor:
        """Returns page-locked memory from the pool."""
        return self._pool.take(num_bytes)

    def give_back(self, memory: Tensor, after: Mark | None = None) -> None:
        """Returns it to the pool."""
        self._pool.put(memory, after)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Starts an asynchronous copy on the current stream."""
        target.copy_(source, non_blocking=True)

    def identity(self, device: torch.device) -> str:
        """Returns the device's name and UUID."""
        import torch

        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} {properties.uuid}"

    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        """Returns what torch's allocator has handed out to this process, whoever asked."""
        import torch

        seen = set(devices)
        return DeviceMemory(
            allocated_bytes=sum(torch.cuda.memory_allocated(device) for device in seen),
            peak_bytes=sum(torch.cuda.max_memory_allocated(device) for device in seen),
            pinned_bytes=self._pool.num_bytes,
        )

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
        if torch.cuda.is_current_stream_capturing():
            raise AttachError(
                "a CUDA graph is being captured, and averaging over workers cannot be part of one: its messages are "
                "sent by the host. Attach and train outside torch.cuda.graph(); capture forward and backward of parts "
                "with torch.cuda.make_graphed_callables instead."
            )
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
