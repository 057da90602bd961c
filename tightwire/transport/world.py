"""Joining and leaving the world that the launcher describes: the one place that reads the environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tightwire.errors import TransportError
from tightwire.transport.base import Transport
from tightwire.transport.launch import Launch, attempt_of, local_rank, local_size
from tightwire.transport.shaped import Shaped
from tightwire.transport.single import Single

if TYPE_CHECKING:
    import torch

_current: Transport | None = None


def init(*, deadline_s: float = 30.0, late_s: float | None = None) -> Transport:
    """Joins torchrun's group and returns this worker's transport; a world of one without torchrun.

    Uses torch.distributed if it is initialised already, else initialises it (Gloo, and NCCL beside it where
    CUDA is) from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where the launcher set them, or from what SLURM or
    MPI set in their place. A second call returns the same transport.

    The job's secret, TIGHTWIRE_SECRET, keeps strangers out of who-is-alive; `tightwire lab run` makes one, and under
    other launchers the user may. Without it, whoever reads the store of the rendezvous can speak for the job.

    Contract: every worker calls it; blocks until all have joined.

    Args:
        deadline_s: the longest that a rank may be silent while it is waited for, or not have joined.
        late_s: the longest that a rank that is alive may be waited for, as while it saves or evaluates; after
            `deadline_s` a warning names it, and where in its program it is. By default 20 deadlines.

    Raises:
        PeerError: some workers did not join in time; names them.
        TransportError: the rendezvous is impossible: its port is taken, or an address is wrong.
    """
    global _current
    if _current is None:
        _current = _join(deadline_s, late_s)
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
    return torch.device("cuda", local_rank(os.environ) % torch.cuda.device_count())


def workers_per_node() -> int:
    """Returns how many consecutive ranks share a host, as the launcher says (LOCAL_WORLD_SIZE); 0 where it does not."""
    return local_size(os.environ)


def _join(deadline_s: float, late_s: float | None) -> Transport:
    from tightwire.transport import join

    rate = os.environ.get("TIGHTWIRE_SHAPED_RATE_BYTES_PER_S")
    secret = os.environ.get("TIGHTWIRE_SECRET", "")
    if join.is_initialized():
        host = os.environ.get("MASTER_ADDR")
        transport: Transport = join.join_initialized(
            host=host, secret=secret, attempt=attempt_of(os.environ), deadline_s=deadline_s, late_s=late_s
        )
    elif launch := Launch.from_environment(os.environ):
        transport = join.join_launched(launch, secret=secret, deadline_s=deadline_s, late_s=late_s)
    else:
        return Single(deadline_s=deadline_s)
    return Shaped(transport, rate_bytes_per_s=float(rate)) if rate else transport
