"""What a run learnt about its plan, kept in a plan file: a restart of the same job chooses at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tightwire import files
from tightwire.cluster.limits import require_bandwidth
from tightwire.devices import device_named
from tightwire.errors import FileError, PlanError
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

        Raises:
            FileError: on every rank alike: the file holds something else, which must not be overwritten.
        """
        if transport.rank == 0:
            self._look_ahead()
        mine = self._read() if transport.rank == 0 else _Told()
        told = _Told(*json.loads(transport.exchange(json.dumps(mine).encode())[0]))
        if told.refusal:
            raise FileError(told.refusal)
        if not told.plan_file:
            return None
        plan_file = files.check(told.plan_file, PlanFile, str(self.path))
        now, then = probe(transport, budget_s=LOOK_S).bandwidth_bytes_per_s, told.bandwidth_bytes_per_s
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

    def _read(self) -> _Told:
        """Returns what the file holds: nothing where there is none, or none that was made for this job."""
        try:
            with self.path.open("rb") as file:
                if not file.read(1):  # as `mktemp` leaves it
                    return _Told()
        except FileNotFoundError:
            return _Told()
        except (OSError, ValueError) as error:  # nobody may look into it
            log.warning("%s cannot be read (%s); a plan is chosen anew.", self.path, error)
            return _Told()
        try:
            plan_file = PlanFile.read(self.path)
        except PlanError as error:  # of a version that knew other plans
            log.warning("%s; a plan is chosen anew.", error)
            return _Told()
        except FileError as error:
            return _Told(
                f"keep={str(self.path)!r} would overwrite what is no plan: {error} Name another file."
            )
        try:
            made_for = files.check(plan_file.measured.get(MADE_FOR), dict[str, str], MADE_FOR)
            then = float(plan_file.measured["cluster"]["bandwidth_bytes_per_s"])
            require_bandwidth("bandwidth_bytes_per_s", then)
            content = json.loads(json.dumps(dataclasses.asdict(plan_file)))
        except (FileError, LookupError, TypeError, ValueError):
            return _Told(
                f"keep={str(self.path)!r} would overwrite a plan that was not kept so: it does not say, or not as "
                f"attach writes it, what it was made for (measured: {MADE_FOR}, and cluster). Name another file; or "
                "give this one as the plan, which is taken then as it is."
            )
        if unlike := [name for name, fact in self.facts.items() if made_for.get(name) != fact]:
            log.warning("%s was made for another %s: a plan is chosen anew.", self.path, " and ".join(unlike))
            return _Told()
        return _Told("", content, then)


class _Told(NamedTuple):
    """What rank 0 tells of a file: why it is refused, or the plan file as plain values, or neither."""

    refusal: str = ""
    plan_file: dict[str, Any] | None = None
    bandwidth_bytes_per_s: float = 0.0


def facts_of(
    model: Mapping[str, object],
    optimizer: str,
    device: torch.device,
    workers: int,
    workers_per_node: int,
    wanted: str,
) -> dict[str, str]:
    """Returns what a plan that was learnt is good for, as far as it is known before the first step.

    Args:
        model: shapes and dtypes by name.
        optimizer: what it is called, for it says which plans may be.
        device: that it is on, on rank 0.
        workers: how many.
        workers_per_node: 0 where it is not told.
        wanted: what was asked for, and what is allowed.
    """
    digest = hashlib.sha256(json.dumps(sorted((k, str(v)) for k, v in model.items())).encode()).hexdigest()
    return {
        "model": digest[:16],
        "optimizer": optimizer,
        "device": str(device_named(device).facts(device).get("card", device.type)),
        "number of workers": f"{workers}, {workers_per_node} per node",
        "version of tightwire": own_version(),
        "allowance": wanted,
    }
