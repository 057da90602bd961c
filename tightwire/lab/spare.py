"""A warm spare: a process that has imported what workers need, and becomes the next worker that is started anew.

Eight hosts would start a worker anew with a processor of its own. On one machine that stands for them, its imports
(seconds of processor) would take from the other workers what no real fault takes.

The process is `lab/warm.py`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from tightwire.lab.hosts import Hosts

MODULES: Final = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "tightwire",
    "tightwire._attach",
    "tightwire.kernels.totals",
    "tightwire.transport.join",
    "tightwire.transport.lighthouse",
)
_WITH_VALUE: Final = ("-W", "-X")


@final
class Spare:
    """One spare, of any host.

    Attributes:
        process: that will be the worker.
    """

    def __init__(
        self,
        hosts: Hosts,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        start: Sequence[str] = (),
        modules: Sequence[str] = MODULES,
    ) -> None:
        """Starts it.

        Args:
            hosts: where it will be needed.
            argv: a command for which `can_be_warm` is true.
            environment: to import under.
            start: what stands before the command.
            modules: to import.
        """
        self._hosts = hosts
        ours, theirs = socket.socketpair()
        self._orders = ours
        python, options, rest = _split(argv)
        at = [str(theirs.fileno()), ",".join(modules)]
        with theirs:
            self.process = subprocess.Popen(
                hosts.command(0, [*start, python, *options, "-m", "tightwire.lab.warm", *at, *rest]),
                env=environment,
                stdin=hosts.guard.orders,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                process_group=0,
                pass_fds=[theirs.fileno()],
            )

    @property
    def is_ready(self) -> bool:
        """Whether it has imported all; on a busy machine that may take long."""
        return self.process.poll() is None and bool(select.select([self._orders], [], [], 0)[0])

    def order(self, rank: int, environment: Mapping[str, str]) -> bool:
        """Has it go on as the worker of a rank; returns whether it heard."""
        text = json.dumps(dict(environment)).encode() + b"\n"
        with self._orders, self._hosts.network(rank) as networks, suppress(OSError):
            socket.send_fds(self._orders, [text], networks)
            return True
        return False

    def close(self) -> None:
        """Ends it. Only where it did not become a worker."""
        self._orders.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self._hosts.guard.forget(self.process.pid)


def can_be_warm(argv: Sequence[str]) -> bool:
    """Whether a command is a Python program that a spare can become.

    >>> can_be_warm(["/usr/bin/python3", "-W", "ignore", "-m", "package.module", "--fast"])
    True
    >>> can_be_warm(["python", "-i"]) or can_be_warm(["bash", "train.sh"])
    False
    """
    if not Path(argv[0]).name.startswith("python"):
        return False
    _, options, rest = _split(argv)
    plain = all(option in _WITH_VALUE or option in ("-u", "-O", "-B", "-E", "-s") or before in _WITH_VALUE
                for before, option in zip(["", *options], options, strict=False))  # fmt: skip
    return (
        bool(rest) and plain and (not rest[0].startswith("-") or (rest[0] in ("-m", "-c") and len(rest) > 1))
    )


def _split(argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """Returns the interpreter, its options, and what it runs, with arguments."""
    place = 1
    while place < len(argv) and argv[place].startswith("-") and argv[place] not in ("-m", "-c"):
        place += 2 if argv[place] in _WITH_VALUE else 1
    return argv[0], list(argv[1:place]), list(argv[place:])
