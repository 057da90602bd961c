"""Memory of a host that outlives its workers: where a job that the launcher starts anew finds its last snapshots.

torchrun ends all workers when one dies, and starts them anew; what they held in their own memory is gone by then. So
snapshots lie in /dev/shm, in a directory of the launcher's that this user alone can read. It is removed once the
launcher has ended, however it ends: a small process, started with the directory, waits for that.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from tightwire.errors import TransportError
from tightwire.transport.seal import DIGEST_BYTES, Seal

MEMORY: Final = Path("/dev/shm")
KEPT: Final = 2  # snapshots of each rank: one that died may have made the last before the others did
RUN_ID: Final = "TORCHELASTIC_RUN_ID"
_SWEEP: Final = 'while kill -0 "$1" 2>/dev/null; do sleep 1; done; rm -rf -- "$2"'
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9]{1,9})-([0-9]{1,18})")


@dataclass(frozen=True, order=True)
class Snap:
    """What one file is.

    Attributes:
        run: which run of the job, and of what: 12 hexadecimal digits, and 4 of the number of workers.
        rank: whose.
        step: after which.
    """

    run: str
    rank: int
    step: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.run}-{self.rank}-{self.step}"

    @classmethod
    def parse(cls, name: str) -> Snap | None:
        """Reads a file's name; None if it is another's."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]))


@final
class Shelf:
    """The snapshots on one host, each sealed with the job's secret.

    Attributes:
        place: what two workers have in common if they share this memory.
    """

    def __init__(self, directory: Path, seal: Seal, *, keeper_of: int | None) -> None:
        """Makes the directory, if it is not there.

        Args:
            directory: to be this user's alone.
            seal: of the job.
            keeper_of: the process with whose end the directory is removed; None: the caller does that.

        Raises:
            TransportError: it cannot be made, or belongs to somebody else.
        """
        self._directory, self._seal = directory, seal
        try:
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)
                if keeper_of is not None:
                    _remove_after(keeper_of, directory)
            seen = directory.lstat()
        except OSError as error:
            raise TransportError(
                f"attach(remember=...) keeps snapshots in {directory}, which cannot be made: {error.strerror}; leave "
                "remember out, or give the host a /dev/shm."
            ) from None
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
            raise TransportError(
                f"attach(remember=...) keeps snapshots in {directory}, which is not this user's alone: remove it."
            )
        boot = Path("/proc/sys/kernel/random/boot_id")
        self.place = f"{boot.read_text().strip() if boot.exists() else ''}/{seen.st_dev}/{seen.st_ino}"

    def held(self, run: str) -> dict[Snap, int]:
        """Returns the sizes in bytes, seals included, of what is here of one run."""
        found = {}
        for path in self._directory.iterdir():
            snap = Snap.parse(path.name)
            if snap is not None and snap.run == run:
                with suppress(FileNotFoundError):  # another worker of this host has just forgotten it
                    found[snap] = path.stat().st_size
        return found

    def other_sizes(self, run: str) -> list[int]:
        """Returns the numbers of workers, other than a run's, of which there are snapshots of the same."""
        snaps = [snap for path in self._directory.iterdir() if (snap := Snap.parse(path.name))]
        return sorted({int(s.run[12:], 16) for s in snaps if s.run[:12] == run[:12] and s.run != run})

    def read(self, snap: Snap) -> bytes:
        """Returns a snapshot with its seal, as it is sent."""
        return (self._directory / snap.name).read_bytes()

    def sealed(self, snap: Snap, content: bytes) -> bytes:
        """Returns a snapshot with a seal over it and its name."""
        digest = self._seal.close(_marked(snap, content))[:DIGEST_BYTES]
        return digest + content

    def open(self, snap: Snap, data: bytes) -> bytes | None:
        """Returns what was sealed; None if that is not this snapshot of this job."""
        digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return None if self._seal.open(digest + _marked(snap, content)) is None else content

    def put(self, snap: Snap, data: bytes) -> None:
        """Keeps a sealed snapshot, and forgets what is older than the one before.

        Raises:
            OSError: memory is full; nothing is left of it then.
        """
        for cut in self._directory.glob(f"{snap.run}-{snap.rank}-*.part"):  # its writer was killed
            cut.unlink(missing_ok=True)
        path = self._directory / snap.name
        part = path.with_suffix(".part")
        try:
            part.write_bytes(data)
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        old = sorted((s for s in self.held(snap.run) if s.rank == snap.rank), key=lambda s: s.step)
        for other in old[:-KEPT]:
            (self._directory / other.name).unlink(missing_ok=True)

    def forget_after(self, run: str, step: int) -> None:
        """Removes what will be made again, now that all go on from an earlier step."""
        for snap in self.held(run):
            if snap.step > step:
                (self._directory / snap.name).unlink(missing_ok=True)


def find_shelf(environment: Mapping[str, str]) -> Shelf | None:
    """Returns this host's shelf under torchrun; None under other launchers, which start no job anew.

    Raises:
        TransportError: see `Shelf`.
    """
    if (run := environment.get(RUN_ID)) is None:
        return None
    agent = os.getppid()
    nonce = hashlib.sha256(run.encode()).hexdigest()[:16]
    return Shelf(
        MEMORY / f"tightwire-{os.geteuid()}-{nonce}-{agent}",
        Seal(environment.get("TIGHTWIRE_SECRET", ""), f"snapshots {run}"),
        keeper_of=agent,
    )


def _marked(snap: Snap, content: bytes) -> bytes:
    return snap.name.encode() + b"\0" + content


def _remove_after(process: int, directory: Path) -> None:
    """Has a process of its own, which no signal to the workers reaches, remove the directory."""
    subprocess.Popen(
        ["/bin/sh", "-c", _SWEEP, "tightwire-shelf", str(process), str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
