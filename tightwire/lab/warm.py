"""The process of a warm spare; see `lab/spare.py`.

Run as `python -m tightwire.lab.warm FILE MODULES ARGUMENT…` it imports the modules, waits for an order on a socket, the
open file FILE, and goes on as `python ARGUMENT…` would. An order is a line of JSON, the environment, with an open file
that holds the network namespace of its host, where hosts have one. Without an order it ends with whoever made it.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tightwire.lab.keeper import enter

_MOST_BYTES: Final = 1 << 20


def main() -> None:
    """Is a spare."""
    file, modules, *argv = sys.argv[1:]
    policy = os.sched_getscheduler(0)
    is_idle = _can_be_idle(policy)
    if is_idle:  # it imports in time that no worker wants
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    for module in modules.split(","):
        importlib.import_module(module)
    environment = _wait_for_order(int(file))
    if is_idle:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    os.environ.clear()
    os.environ.update(environment)
    become(argv)


def _wait_for_order(file: int) -> dict[str, str]:
    """Returns the environment of the worker that this becomes, on whose host it is then."""
    with socket.socket(fileno=file) as orders:
        orders.send(b".")  # ready
        text, networks = b"", list[int]()
        while not text.endswith(b"\n"):
            data, files, _, _ = socket.recv_fds(orders, _MOST_BYTES, 1)
            if not data:  # whoever made it is gone, or has no use for it
                os._exit(0)
            text, networks = text + data, networks + files
    for network in networks:
        enter(network)
        os.close(network)
    told: dict[str, str] = json.loads(text)
    return told


def _can_be_idle(policy: int) -> bool:
    """Whether this process may give way to all others, and stop doing so; tried on a thread."""
    can = threading.Event()

    def try_it() -> None:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, policy, os.sched_param(0))
            can.set()

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return can.is_set()


def become(argv: Sequence[str]) -> None:
    """Runs a script, a module or a text as the main program."""
    kind, rest = argv[0], list(argv[1:])
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = list(argv), str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
