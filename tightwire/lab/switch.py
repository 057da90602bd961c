"""The switch that adds, as `--switch` asks for it, and its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import final

from tightwire import units
from tightwire.errors import LabError, TransportError, UnitError
from tightwire.lab.hosts import Hosts

PORT = 29400


@dataclass(frozen=True, kw_only=True)
class AddingSwitch:
    """A switch with a pool of slots to add in.

    Attributes:
        slots: how many chunks it adds at a time.
        slot_bytes: of the sums of each.
    """

    slots: int = 64
    slot_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        from tightwire.transport.adding import check_pool  # a lab without such a switch needs no torch

        try:
            check_pool(self.slots, self.slot_bytes)
        except TransportError as error:
            raise LabError(str(error)) from None

    def __str__(self) -> str:
        return f"adds,slots={self.slots},slot={units.print_bytes(self.slot_bytes)}"

    @classmethod
    def parse(cls, text: str) -> AddingSwitch:
        """Reads `adds`, or `adds,slots=64,slot=64KiB`.

        >>> AddingSwitch.parse("adds,slots=8,slot=4KiB").slot_bytes
        4096

        Raises:
            LabError: another text, or a switch without memory.
        """
        kind, *fields = text.split(",")
        told = dict(field.partition("=")[::2] for field in fields)
        try:
            slots = int(told.pop("slots", str(cls.slots)))
            slot_bytes = units.parse_bytes(told.pop("slot", str(cls.slot_bytes)))
        except (ValueError, UnitError):
            told = {"slots, slot": ""}
        if kind != "adds" or told:
            raise LabError(
                f"--switch {text}: write adds, or how much memory it has to add in, as in adds,slots=64,slot=64KiB."
            )
        return cls(slots=slots, slot_bytes=slot_bytes)


@final
class SwitchProcess:
    """The process that adds, in the network of the switch; it lives as long as the lab, or until it is killed."""

    def __init__(self, switch: AddingSwitch, hosts: Hosts) -> None:
        """Starts it, and waits until it listens.

        Args:
            switch: what memory it has.
            hosts: whose switch.

        Raises:
            LabError: it did not start.
        """
        argv = [
            sys.executable,
            "-m",
            "tightwire.lab.adder",
            str(PORT),
            str(switch.slots),
            str(switch.slot_bytes),
        ]
        from tightwire.transport.adding import SwitchAddress

        command, host = hosts.switch_command(argv)
        self._hosts = hosts
        self._process = subprocess.Popen(
            command,
            stdin=hosts.guard.orders,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            _, error = self._process.communicate()
            raise LabError(f"the switch that adds did not start: {error.strip().rpartition(chr(10))[2]}")
        self.address = SwitchAddress(host=host, port=PORT, slots=switch.slots, slot_bytes=switch.slot_bytes)

    def stop(self) -> None:
        """Ends it at once."""
        with suppress(ProcessLookupError):
            os.kill(self._hosts.worker_pid(self._process.pid), signal.SIGKILL)
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.communicate()
        self._hosts.guard.forget(self._process.pid)
