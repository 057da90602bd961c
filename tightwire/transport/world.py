"""Joining and leaving the world that the launcher describes: the one place that reads the environment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from tightwire.devices import DEVICES
from tightwire.errors import TransportError
from tightwire.transport.adding import SwitchAddress
from tightwire.transport.base import Transport
from tightwire.transport.door import Door
from tightwire.transport.launch import Launch, attempt_of, local_rank, local_size
from tightwire.transport.shaped import Shaped
from tightwire.transport.shelf import Shelf, find_shelf
from tightwire.transport.single import Single
from tightwire.transport.switched import Switch

if TYPE_CHECKING:
    import torch

_current: Transport | None = None
_give_back: Callable[[], None] | None = None  # SIGTERM


def init(
    *,
    deadline_s: float = 30.0,
    late_s: float | None = None,
    elastic: bool = False,
    min_workers: int | None = None,
) -> Transport:
    """Joins torchrun's group and returns this worker's transport; a world of one without torchrun.

    Uses torch.distributed if it is initialised already, else initialises it (Gloo, and NCCL beside it where
    CUDA is) from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where the launcher set them, or from what SLURM or
    MPI set in their place. A second call returns the same transport.

    The job's secret, TIGHTWIRE_SECRET, keeps strangers out of who-is-alive; `tightwire lab run` makes one, and under
    other launchers the user may. Without it, whoever reads the store of the rendezvous can speak for the job.

    With `elastic`, workers may die, leave and join while others train; torchft's lighthouse, whose address is in
    TORCHFT_LIGHTHOUSE, says who is in. This worker is alone until `attach`, which lets it in: `run.transport` has its
    rank and the number of workers then, until they change. torch.distributed is not initialised, for its groups
    cannot lose a member. Until `shutdown`, SIGTERM has this worker finish its round, leave, and exit with 0.

    Contract: every worker calls it; blocks until all have joined; with `elastic` it does not block.

    Args:
        deadline_s: the longest that a rank may be silent while it is waited for, or not have joined.
        late_s: the longest that a rank that is alive may be waited for, as while it saves or evaluates; after
            `deadline_s` a warning names it, and where in its program it is. By default 20 deadlines.
        elastic: see above.
        min_workers: with `elastic`, how many must have come before any trains; by default TIGHTWIRE_MIN_WORKERS, or 1.

    Raises:
        PeerError: some workers did not join in time; names them.
        TransportError: the rendezvous is impossible: its port is taken, or an address is wrong; with `elastic`, there
            is no lighthouse.
    """
    global _current
    if _current is None and elastic:
        _current = Single(deadline_s=deadline_s, door=_find_door(deadline_s, late_s, min_workers))
    elif _current is None:
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
    global _current, _give_back
    if _current is not None:
        _current.close()
        _current = None
    if _give_back is not None:
        _give_back()
        _give_back = None


def device() -> torch.device:
    """Returns this worker's device: cuda:LOCAL_RANK where CUDA is, else cpu."""
    import torch

    count = DEVICES["cuda"].count()
    return torch.device("cuda", local_rank(os.environ) % count) if count else torch.device("cpu")


def workers_per_node() -> int:
    """Returns how many consecutive ranks share a host, as the launcher says (LOCAL_WORLD_SIZE); 0 where it does not."""
    return local_size(os.environ)


def switch() -> Switch | None:
    """Returns the switch that adds for this worker, as the launcher says (TIGHTWIRE_SWITCH); None where it does not.

    Raises:
        TransportError: a value that cannot be read.
    """
    told = os.environ.get("TIGHTWIRE_SWITCH")
    return Switch(SwitchAddress.parse(told)) if told else None


def shelf() -> Shelf | None:
    """Returns where this host keeps snapshots under torchrun; None under launchers that start no job anew.

    Raises:
        TransportError: it cannot be made.
    """
    return find_shelf(os.environ)


def _join(deadline_s: float, late_s: float | None) -> Transport:
    from tightwire.transport import join

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
    return _shaped(transport)


def _shaped(transport: Transport) -> Transport:
    """Returns a transport that is as slow as the lab says, where it leaves that to us."""
    rate = os.environ.get("TIGHTWIRE_SHAPED_RATE_BYTES_PER_S")
    return Shaped(transport, rate_bytes_per_s=float(rate)) if rate else transport


def _find_door(deadline_s: float, late_s: float | None, min_workers: int | None) -> Door:
    from tightwire.transport.lighthouse import VARIABLE, Lighthouse

    if not (address := os.environ.get(VARIABLE, "")):
        raise TransportError(
            f"elastic=True asks a lighthouse who is in, and {VARIABLE} does not say where it is: start one with "
            "`python -m tightwire.transport.lighthouse --port 29510`, and set the variable to http://HOST:29510 on all "
            "workers; `tightwire lab run --elastic` does both."
        )
    told = os.environ.get("TIGHTWIRE_MIN_WORKERS", "1") if min_workers is None else str(min_workers)
    if not told.isdigit() or int(told) < 1:
        raise TransportError(
            f"min_workers (TIGHTWIRE_MIN_WORKERS) is {told}; it must be a whole number from 1."
        )
    found = Lighthouse(
        address,
        min_workers=int(told),
        secret=os.environ.get("TIGHTWIRE_SECRET", ""),
        deadline_s=deadline_s,
        late_s=late_s,
        wrap=_shaped,
    )
    _have_sigterm_tell(found.notice)
    return found


def _have_sigterm_tell(notice: threading.Event) -> None:
    """Makes SIGTERM a notice, until `shutdown`: what goes on after that can be ended by it again."""
    global _give_back
    if threading.current_thread() is not threading.main_thread():
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        notice.set()

    before = signal.signal(signal.SIGTERM, leave)

    def give_back() -> None:
        is_ours = signal.getsignal(signal.SIGTERM) is leave
        if is_ours and not notice.is_set() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    _give_back = give_back
