"""Joining and leaving the world that the launcher describes: the one place that reads the environment."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tightwire.errors import TransportError
from tightwire.transport.base import Transport
from tightwire.transport.single import Single

if TYPE_CHECKING:
    import torch

_current: Transport | None = None


def init(*, deadline_s: float = 30.0) -> Transport:
    """Joins torchrun's group and returns this worker's transport; a world of one without torchrun.

    Uses torch.distributed if it is initialised already, else initialises it (Gloo, and NCCL beside it where
    CUDA is) from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where the launcher set them. A second call
    returns the same transport.

    Contract: every worker calls it; blocks until all have joined.

    Args:
        deadline_s: the longest that any wait lasts, this one included.

    Raises:
        PeerError: some workers did not join in time; names them.
        TransportError: the rendezvous is impossible: its port is taken, or an address is wrong.
    """
    global _current
    if _current is None:
        _current = _join(deadline_s)
    return _current


def current() -> Transport:
    """Returns the transport that `init` made.

    Raises:
        TransportError: `init` has not been called.
    """
    if _current is None:
        raise TransportError("there is no transport yet: call tightwire.init() first, on every worker")
    return _current


def shutdown() -> None:
    """Leaves the world: closes the transport that `init` made. Call it after the last collective."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def device() -> torch.device:
    """Returns this worker's device: cuda:LOCAL_RANK where CUDA is, else cpu."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _join(deadline_s: float) -> Transport:
    import torch.distributed as dist

    if not dist.is_available():
        return Single(deadline_s=deadline_s)
    if not dist.is_initialized():
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return Single(deadline_s=deadline_s)
        dist.init_process_group("gloo", timeout=timedelta(seconds=deadline_s))

    from tightwire.transport.torch_distributed import TorchDistributed

    c10d: Any = dist
    store = c10d.PrefixStore("tightwire", dist.distributed_c10d._get_default_store())
    return TorchDistributed(store, dist.get_rank(), dist.get_world_size(), deadline_s=deadline_s)
