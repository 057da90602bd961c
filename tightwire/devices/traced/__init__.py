"""A device for tests, without a GPU: it does everything late, in any order that streams allow, and finds races.

`traced` is a torch device (`model.to("traced")`) with streams, events and pinned memory of its own. A read that does
not wait for the write before it is a wrong number, because the write has not happened, and a race with both lines
named, because neither agent's vector clock knew of the other.

It is never registered unless a test or `tightwire bench gpu --emulate` asks: torch has one such device per process.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.devices import DEVICES
from tightwire.devices.cuda import CAPTURED
from tightwire.devices.device import Device, DeviceMemory, Mark
from tightwire.devices.pool import PinnedPool
from tightwire.devices.traced.backend import KIND, Backend, place
from tightwire.devices.traced.clocks import AccessRace, Clock
from tightwire.devices.traced.streams import Span, StreamEvent, Streams
from tightwire.devices.traced.timing import VirtualTime
from tightwire.errors import AttachError

__all__ = ["KIND", "AccessRace", "TracedDevice", "VirtualTime", "install"]


@final
class TracedMark(Mark):
    """An event, of which device, what the thread that made it knew, and its virtual time."""

    def __init__(self, event: StreamEvent | None, index: int, known: Clock, at_s: float = 0.0) -> None:
        self.event, self.index, self.known, self.at_s = event, index, known, at_s


@final
class TracedDevice(Device):
    """The emulated device; `omit` leaves out one wait, to see that it is missed.

    Attributes:
        omitted: the sites whose waits are left out: `follow` or `wait`, and the line of ours that asks for it.
        sites: all that were met.
        captures: whether a graph is being captured, as a test says.
        timing: virtual time, where somebody asks for it.
    """

    kind = KIND
    is_host = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.omitted: frozenset[str] = frozenset()
        self.sites: set[str] = set()
        self.captures = False
        self.timing: VirtualTime | None = None
        self._local = threading.local()
        self._pool = PinnedPool(backend.pin, self.wait)

    def restart(self, *, seed: int = 0, haste: float = 0.0) -> None:
        """Forgets all memory, and begins a run in which streams progress as `Streams` says."""
        self._backend.restart(seed, haste)
        self._pool = PinnedPool(self._backend.pin, self.wait)
        self.sites = set()

    @property
    def scheduler(self) -> Streams:
        """Of the present run."""
        return self._backend.scheduler

    @property
    def races(self) -> list[AccessRace]:
        """Found so far in the present run."""
        return self.scheduler.memory.races

    def mark(self, at: torch.device) -> Mark:
        """Records an event on this thread's stream of a device."""
        index = at.index or 0
        stream = self.scheduler.current(index)
        event = self.scheduler.record(stream)
        at_s = self.timing.end_of(stream) if self.timing is not None else 0.0
        return TracedMark(event, index, self.scheduler.knowledge(), at_s)

    def follow(self, mark: Mark) -> None:
        """Has this thread's streams begin after the mark."""
        assert isinstance(mark, TracedMark)
        if self.omits("follow"):
            return
        self.scheduler.learn(mark.known)
        if mark.event is not None:
            self.scheduler.follow(self.scheduler.current(mark.index), mark.event)
        if self.timing is not None:
            self.timing.follow(self.scheduler.current(mark.index), mark.at_s)

    def wait(self, mark: Mark) -> None:
        """Does what the mark marks."""
        assert isinstance(mark, TracedMark)
        if self.omits("wait"):
            return
        self.scheduler.learn(mark.known)
        if mark.event is not None:
            self.scheduler.wait_at(place())
            self.scheduler.wait(mark.event)
        if self.timing is not None:
            self.timing.wait_until(mark.at_s)

    def drain(self, at: torch.device) -> None:
        """Does all that any stream was asked for."""
        self.scheduler.drain()

    def time_s(self, work: Callable[[], object], at: torch.device) -> float:
        """Returns how long this process takes to emulate the work, which says nothing of any device."""
        began_s = time.perf_counter()
        work()
        self.wait(self.mark(at))
        return time.perf_counter() - began_s

    @contextlib.contextmanager
    def side(self, like: torch.device) -> Iterator[None]:
        """Makes a stream current in this thread."""
        index = like.index or 0
        self.scheduler.make_current(index, self.scheduler.stream(threading.current_thread().name))
        try:
            yield
        finally:
            self.scheduler.make_current(index, None)

    def current(self, at: torch.device) -> contextlib.AbstractContextManager[None]:
        """Changes nothing: all calls name their device."""
        return contextlib.nullcontext()

    def pinned(self, num_bytes: int) -> Tensor:
        """Returns memory from the pool."""
        return self._pool.take(num_bytes)

    def give_back(self, memory: Tensor, after: Mark | None = None) -> None:
        """Returns it to the pool."""
        self._pool.put(memory, after or TracedMark(None, 0, self.scheduler.knowledge()))

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Queues a copy."""
        target.copy_(source, non_blocking=True)
        if self.timing is not None:
            at = source.device if source.device.type == KIND else target.device
            self.timing.copy(self.scheduler.current(at.index or 0), source.nbytes)

    def count(self) -> int:
        """Returns 1."""
        return 1

    def random_state(self, at: torch.device) -> Tensor:
        """Returns nothing: the generator is the host's."""
        import torch

        return torch.empty(0, dtype=torch.uint8)

    def set_random_state(self, at: torch.device, state: Tensor) -> None:
        """Does nothing."""

    def identity(self, device: torch.device) -> str:
        """Returns its index."""
        return str(device)

    def facts(self, device: torch.device) -> dict[str, object]:
        """Returns that it is none."""
        return {"card": "an emulated device"}

    def memory(self, devices: Iterable[torch.device]) -> DeviceMemory:
        """Counts all that was handed out: blocks of a run are given back together."""
        handed_out = self._backend.allocated_bytes
        return DeviceMemory(
            allocated_bytes=handed_out, peak_bytes=handed_out, pinned_bytes=self._pool.num_bytes
        )

    def forget_peak(self, device: torch.device) -> None:
        """Keeps it."""

    def require_order(self, at: torch.device) -> None:
        """Refuses while `captures` is set, as CUDA does while a stream is being captured.

        Raises:
            AttachError: it is.
        """
        if self.captures:
            raise AttachError(CAPTURED)

    def require_usable(self, device: torch.device) -> None:
        """Accepts, unless `captures` is set."""
        self.require_order(device)

    def host_reads(self, tensor: Tensor) -> None:
        """Notes that this thread reads pinned memory, as a transport does that sends it."""
        self.scheduler.touch_on_host(self._backend.spans(tensor), [], "sent by the host")

    def host_writes(self, tensor: Tensor) -> None:
        """Notes that this thread writes pinned memory, as a transport does that receives into it."""
        self.scheduler.touch_on_host([], self._backend.spans(tensor), "received by the host")

    def on_host(self, tensor: Tensor) -> Tensor:
        """Returns the same memory as a CPU tensor, for who moves it as the device would."""
        return self._backend.on_host(tensor)

    def spans(self, tensor: Tensor) -> list[Span]:
        """Returns the bytes that a tensor covers; none of ordinary host memory."""
        return self._backend.spans(tensor)

    def omits(self, kind: str) -> bool:
        """Notes a wait at the innermost line of ours that asks for it; returns whether it is to be left out."""
        site = f"{kind} at {place()}"
        self.sites.add(site)
        return site in self.omitted


# Arguments that kernels of these names only read.
_READ_ONLY = {
    "decode": ("message", "backward"),
    "scatter": ("message",),
    "dequantise": ("message",),
    "count_votes": ("messages",),
    "join_planes": ("message",),
    "split_planes": ("bits",),
    "estimate": ("table",),
    "add_to_sketch": ("x",),
    "mean_magnitude": ("values",),
    "encode": ("backward", "found"),
}


# Kernels that tell of a wrong index by a flag on the device, as on CUDA.
_DOUBTED = ("scatter_largest", "scatter_sparse", "scatter_blocks", "decode_cosines")


class _Kernels(SimpleNamespace):
    """The CPU's kernels, queued; those that return a value wait for the stream, as on CUDA."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from tightwire.kernels import cpu

        function: Callable[..., Any] = vars(cpu)[name]
        answers = inspect.signature(function).return_annotation not in (None, "None")
        backend = self._backend

        def launch(*args: Any, **kwargs: Any) -> Any:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if elsewhere := [str(x.device) for x in tensors if x.device.type != KIND]:
                raise RuntimeError(
                    f"the kernel {name} runs on {KIND}, and was given memory on {elsewhere[0]}"
                )
            lowered = [backend.on_host(x) if isinstance(x, Tensor) else x for x in args]
            named = {k: backend.on_host(x) if isinstance(x, Tensor) else x for k, x in kwargs.items()}
            results: list[Any] = []
            bound = inspect.signature(function).bind(*args, **kwargs).arguments
            untouched = next((names for prefix, names in _READ_ONLY.items() if name.startswith(prefix)), ())
            written = [x for k, x in bound.items() if isinstance(x, Tensor) and k not in untouched]
            if name in _DOUBTED:
                flag = kernels.flag_of(tensors[0].device)
                raised = backend.on_host(flag)

                def try_it() -> None:
                    if not function(*lowered, **named):
                        raised.fill_(1)

                backend.launch(try_it, [*tensors, flag], [*written, flag], name)
                return True
            backend.launch(lambda: results.append(function(*lowered, **named)), tensors, written, name)
            if not answers:
                return None
            backend.wait_for_stream(tensors)
            return results[0]

        setattr(self, name, launch)
        return launch


_installed: list[TracedDevice] = []


def install() -> TracedDevice:
    """Makes the device known to torch and to Tightwire, once in a process, and returns it."""
    if not _installed:
        backend = Backend()
        backend.register()
        device = TracedDevice(backend)
        DEVICES[KIND] = device
        kernels.install(KIND, _Kernels(backend))
        _installed.append(device)
    return _installed[0]
