"""What a run learnt about its plan, kept in a plan file: a restart of the same job chooses at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tightwire import files
from tightwire.devices import device_named
from tightwire.errors import FileError, TightwireError
from tightwire.files import own_version
from tightwire.plan import PlanFile
from tightwire.probe import probe
from tightwire.transport import Transport
from tightwire.units import print_rate

MADE_FOR = "made_for"
# A look at the wire that is long enough to see that it is another one.
LOOK_S = 0.3
SAME_WIRE = 1.5

log = logging.getLogger("tightwire")


@dataclass(frozen=True)
class Learnt:
    """A plan file and what it must have been made for to count.

    Attributes:
        path: of the file, on rank 0.
        facts: about the model, its device, the workers, the version and what was asked for.
    """

    path: pathlib.Path
    facts: Mapping[str, str]

    def keep(self, plan_file: PlanFile) -> None:
        """Writes what was chosen. Rank 0; a file that cannot be written is told and no reason to end training."""
        measured = plan_file.measured | {MADE_FOR: dict(self.facts)}
        try:
            dataclasses.replace(plan_file, measured=measured).write(self.path)
        except FileError as error:
            log.warning("what was chosen is not kept: %s", error)

    def recall(self, transport: Transport) -> PlanFile | None:
        """Returns what was kept, if it was made for the same job on about the same wire.

        Rank 0's file counts, and a short look at the wire. A file of another job is told, and will be replaced.

        Contract: every rank; blocks.
        """
        if transport.rank == 0:
            self._look_ahead()
        mine = self._read() if transport.rank == 0 else ""
        told = transport.exchange(mine.encode())[0].decode()
        if not told:
            return None
        plan_file = files.check(json.loads(told), PlanFile, str(self.path))
        now = probe(transport, budget_s=LOOK_S).bandwidth_bytes_per_s
        then = float(plan_file.measured["cluster"]["bandwidth_bytes_per_s"])
        if max(now / then, then / now) > SAME_WIRE:
            log.warning(
                "%s was made on a wire of %s, and this one has %s: a plan is chosen anew.",
                self.path, print_rate(then), print_rate(now),
            )  # fmt: skip
            return None
        log.info("%s holds what was chosen for this job before: %s.", self.path, plan_file.plan)
        return plan_file

    def _look_ahead(self) -> None:
        """Tells before anything is tried, which may take long, that what is chosen cannot be kept."""
        try:
            files.require_writable(self.path)
        except FileError as error:
            log.warning("what will be chosen is not going to be kept: %s", error)

    def _read(self) -> str:
        """Returns the file as JSON; nothing where there is none that was made for this job."""
        try:
            if not self.path.exists():
                return ""
            plan_file = PlanFile.read(self.path)
        except (TightwireError, OSError) as error:  # nobody may look into its folder
            log.warning("%s; a plan is chosen anew.", error)
            return ""
        kept = plan_file.measured.get(MADE_FOR, {})
        unlike = [name for name, fact in self.facts.items() if kept.get(name) != fact]
        if unlike or "cluster" not in plan_file.measured:
            log.warning("%s was made for another %s: a plan is chosen anew.", self.path, " and ".join(unlike))
            return ""
        return json.dumps(dataclasses.asdict(plan_file))


def facts_of(
    model: Mapping[str, object], device: torch.device, workers: int, workers_per_node: int, wanted: str
) -> dict[str, str]:
    """Returns what a plan that was learnt is good for.

    Args:
        model: shapes and dtypes by name.
        device: that it is on, on rank 0.
        workers: how many.
        workers_per_node: 0 where it is not told.
        wanted: what was asked for, and what is allowed.
    """
    digest = hashlib.sha256(json.dumps(sorted((k, str(v)) for k, v in model.items())).encode()).hexdigest()
    return {
        "model": digest[:16],
        "device": str(device_named(device).facts(device).get("card", device.type)),
        "number of workers": f"{workers}, {workers_per_node} per node",
        "version of tightwire": own_version(),
        "allowance": wanted,
    }
