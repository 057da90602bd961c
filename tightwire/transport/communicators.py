"""NCCL's communicators: what one offers, those of torch, and how ranks make one."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

from tightwire.devices import device_named
from tightwire.errors import TransportError
from tightwire.transport.addresses import Candidates, choose, own_candidates
from tightwire.transport.base import Transport
from tightwire.transport.blame import Wait
from tightwire.transport.watched import watched

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Kernels of different communicators run side by side only while all find room on the device: a stream of each must
# be able to start whatever the others do. CUDA promises so many queues by default, 32 at most.
QUEUES, QUEUES_ARE = 8, "CUDA_DEVICE_MAX_CONNECTIONS"
HINT = "Look at the network between the devices; NCCL_DEBUG=WARN tells more, and over='pinned' does without NCCL."


class Launched(Protocol):
    """A group that a communicator was given."""

    def wait(self) -> object:
        """Has the current stream wait for it; the host goes on."""

    def is_completed(self) -> bool:
        """Whether the device is done with it, or it failed."""


class Communicator(Protocol):
    """What NCCL offers to one channel: groups of sends and receives, sums, and an end."""

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]
    ) -> Launched:
        """Launches sends and receives as one group, after what the current stream was asked for."""

    def all_reduce(self, tensor: Tensor) -> Launched:
        """Launches a sum in place."""

    def fault(self) -> str:
        """Returns what went wrong so far, as by a peer that died; empty where nothing did."""

    def abort(self) -> None:
        """Ends whatever is under way, however incomplete, and all after it."""


@final
class TorchCommunicator:
    """A communicator of torch's `ProcessGroupNCCL`, called directly, beside whatever groups the user has."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        _living.add(self)

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]
    ) -> Launched:
        """Launches between `ncclGroupStart` and `ncclGroupEnd`; receives first, in the order of asking."""
        self._backend._start_coalescing()
        for tensor, src in receives:
            self._backend.recv([_bytes_of(tensor)], src, 0)
        for tensor, dst in sends:
            self._backend.send([_bytes_of(tensor)], dst, 0)
        launched: Launched = self._backend._end_coalescing()
        return launched

    def all_reduce(self, tensor: Tensor) -> Launched:
        """Launches NCCL's sum."""
        launched: Launched = self._backend.allreduce([tensor])
        return launched

    def fault(self) -> str:
        """Returns what torch's own thread, which asks NCCL, has seen: a time out, a remote error, or another."""
        error = self._backend.get_error().name
        return "" if error == "SUCCESS" else str(error)

    def abort(self) -> None:
        """Ends the communicator; kernels that wait on the device return."""
        _living.discard(self)
        self._backend.abort()


def _bytes_of(tensor: Tensor) -> Tensor:
    """Returns a message as bytes: NCCL knows fewer dtypes than messages have, such as no int16."""
    import torch

    return tensor.view(-1).view(torch.uint8)


def connect_nccl(transport: Transport, name: str, at: torch.device) -> Communicator:
    """Makes a communicator over a transport's ranks, which meet at a store that the first of them keeps.

    NCCL connects here and not within the first group: there a rank that is not part of it would keep the others waiting
    on the host, and the first step would take the seconds that this takes.

    Contract: every rank of the transport; blocks until all have come. NCCL itself would wait for a dead rank for ever,
    so a thread connects, and this one waits for it or for somebody to blame.

    Raises:
        PeerError: names the ranks that did not come.
        TransportError: the device has no queue left for one more, or NCCL cannot connect ranks that are alive.
    """
    from datetime import timedelta

    import torch.distributed as dist

    require_queue(len(_living), os.environ)
    c10d: Any = dist
    store: Any = None
    limit = timedelta(seconds=1.2 * transport.late_s + 10)  # the watch ends waits, and names who is missing
    if transport.rank == 0:
        store = c10d.TCPStore("0.0.0.0", 0, None, True, limit, wait_for_workers=False)
    mine = json.dumps(own_candidates(os.environ.get("MASTER_ADDR")).to_dict())
    candidates = [Candidates(**json.loads(one)) for one in transport.exchange(mine.encode())]
    place = json.dumps([choose(candidates, transport.rank), store.port if store else 0])
    host, port = json.loads(transport.exchange(place.encode())[0])
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timedelta(days=365)  # likewise

    def connect() -> Any:
        reached = store or c10d.TCPStore(host, port, None, False, limit, wait_for_workers=False)
        with device_named(at).current(at):
            with _errors_left_to_us():
                backend = c10d.ProcessGroupNCCL(
                    c10d.PrefixStore(name, reached), transport.rank, transport.size, options
                )
            backend.eager_connect_single_device(at)
        return backend

    others = frozenset(range(transport.size)) - {transport.rank}
    backend = watched(transport, connect, Wait(others, "to connect to all ranks by NCCL"), hint=HINT)
    transport.barrier()
    return TorchCommunicator(backend)


def require_queue(communicators: int, environment: Mapping[str, str]) -> None:
    """Makes sure that a device can run the kernels of one more communicator beside those of others.

    Raises:
        TransportError: kernels would wait for each other, one rank's for another's, for ever.
    """
    told = environment.get(QUEUES_ARE, "")
    queues = int(told) if told.isdigit() and int(told) else QUEUES
    if communicators >= queues:
        raise TransportError(
            f"a plan asks for {communicators + 1} NCCL communicators at once, and the device has {queues} queues for "
            f"work that goes on side by side ({QUEUES_ARE}{'' if told else ', by default'}): kernels of two ranks "
            f"could wait for each other for ever. Start with {QUEUES_ARE}=32, or take a plan with fewer lanes, or "
            "over='pinned'."
        )


_living: set[TorchCommunicator] = set()
_environment = threading.Lock()


@contextlib.contextmanager
def _errors_left_to_us() -> Iterator[None]:
    """Has a process group that is made meanwhile only tell of errors: its own way is to end the process at once."""
    variable = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    with _environment:
        before = os.environ.get(variable)
        os.environ[variable] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before
