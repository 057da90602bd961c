"""Snapshots in the memory of hosts, so that a job that the launcher starts anew goes on from its last steps."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from tightwire.architecture import AllReduce
from tightwire.errors import AttachError
from tightwire.plan import Phases
from tightwire.runtime.carried import Carried
from tightwire.runtime.context import RunContext
from tightwire.runtime.randomness import random_state, set_random_state
from tightwire.sync import Rounds
from tightwire.transport import Transport
from tightwire.transport.shelf import Shelf, Snap

TAG = 0
log = logging.getLogger("tightwire")


class Resumable(Protocol):
    """What is needed of a run."""

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from it."""


@dataclass(frozen=True)
class Handover:
    """A snapshot that one rank sends to another.

    Attributes:
        snap: which.
        src: who has it.
        dst: who needs it.
        num_bytes: of it, seal included.
    """

    snap: Snap
    src: int
    dst: int
    num_bytes: int


@final
class Keeping:
    """Keeps this worker's snapshots on its own host and, where there are several, a copy on the next.

    Contract: every rank makes one, recalls, and calls `after_step` after the same rounds.
    """

    def __init__(
        self,
        shelf: Shelf,
        model: nn.Module,
        context: RunContext,
        carried: Carried | None,
        *,
        every: int,
        run: str,
    ) -> None:
        """Learns which ranks share a host's memory. Every rank; blocks.

        Args:
            shelf: of this host.
            model: the user's.
            context: of the run.
            carried: what the user wants kept besides.
            every: how many steps at least lie between two snapshots.
            run: what tells this run of the job from others, and from one of something else; equal on all ranks.
        """
        self._shelf, self._model, self._context, self._carried = shelf, model, context, carried
        self._every, self._at = every, next(model.parameters()).device
        self._run = f"{hashlib.sha256(run.encode()).hexdigest()[:12]}{context.transport.size:04x}"
        self._channel: Transport = context.transport.inner.channel()
        self._places = [told.decode() for told in self._channel.exchange(shelf.place.encode())]
        self._rounds = 0
        self._last = 0
        self._is_full = False

    def recall(self, run: Resumable) -> None:
        """Goes on from the last snapshot that there is of all ranks: the launcher has started them anew.

        How often is not asked: every agent of torchrun counts for itself, and one that replaces another begins at 0.

        Contract: every rank; blocks. A snapshot that lacks its seal is taken up by nobody.
        """
        held = {snap.name: size for snap, size in self._shelf.held(self._run).items()}
        mine = json.dumps([held, self._shelf.other_sizes(self._run)]).encode()
        told, others = zip(*map(json.loads, self._channel.exchange(mine)), strict=True)
        step, moves = plan_recall(told, self._run)
        if not any(told):
            if sizes := sorted({size for sizes in others for size in sizes}):
                log.warning(
                    "started anew with %d workers, and hosts hold snapshots of %s: each worker's is its own part, and "
                    "they do not fit another number. Training begins where the script begins: load a checkpoint.",
                    self._channel.size,
                    " and ".join(map(str, sizes)),
                )
            return  # else the job begins
        if step is None:
            self._forget_after(-1)
            log.warning(
                "started anew, and hosts hold no snapshot of all workers: training begins where the script begins."
            )
            return
        content = self._fetch(Snap(self._run, self._channel.rank, step), moves)
        if any(word != b"1" for word in self._channel.exchange(b"0" if content is None else b"1")):
            self._forget_after(-1)
            log.warning(
                "started anew, and a snapshot of step %d is not this job's: it is not taken up.", step
            )
            return
        assert content is not None
        self._load(run, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        self._last = step
        self._forget_after(step)
        log.warning("started anew: training goes on after step %d, which hosts held in memory.", step)

    def after_step(self, run: Resumable, rounds: int) -> None:
        """Keeps a snapshot, where enough steps were made and a round has just ended. Every rank.

        Args:
            run: the user's.
            rounds: that it has made.
        """
        ends_round, self._rounds = rounds != self._rounds, rounds
        if not ends_round or run.step - self._last < self._every:
            return
        self._last = run.step
        snap = Snap(self._run, self._channel.rank, run.step)
        data = self._shelf.sealed(snap, self._content(run))
        self._put(snap, data)
        # A rank whose data is over is not here to take a copy; all know that alike.
        if len(set(self._places)) > 1 and not self._context.membership.uneven:
            self._copy(run.step, data)

    def close(self) -> None:
        """Gives the channel back; snapshots stay until the launcher ends."""
        self._channel.close()

    def _content(self, run: Resumable) -> bytes:
        file = io.BytesIO()
        torch.save(
            {
                "model": self._model.state_dict(),
                "optimizers": [member.state_dict() for member in self._context.optimizers.members],
                "run": run.state_dict(),
                "carried": {} if self._carried is None else self._carried.state_dict(run.step),
                "random": random_state(self._at),
            },
            file,
        )
        return file.getvalue()

    def _load(self, run: Resumable, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        for member, kept in zip(self._context.optimizers.members, state["optimizers"], strict=True):
            member.load_state_dict(kept)
        run.load_state_dict(state["run"])
        if self._carried is not None:
            self._carried.load_state_dict(state["carried"], run.step)
            self._carried.catch_up(is_within=False)
        set_random_state(state["random"], self._at)

    def _put(self, snap: Snap, data: bytes) -> None:
        try:
            self._shelf.put(snap, data)
        except OSError as error:
            if not self._is_full:
                log.warning(
                    "the snapshot of rank %d after step %d cannot be kept in this host's memory (%s); a job that is "
                    "started anew goes on from an earlier one.",
                    snap.rank,
                    snap.step,
                    error.strerror,
                )
            self._is_full = True

    def _copy(self, step: int, data: bytes) -> None:
        """Sends this rank's snapshot to the next host, and keeps those that come."""
        rank = self._channel.rank
        sizes = [int.from_bytes(b, "little") for b in self._channel.exchange(len(data).to_bytes(8, "little"))]
        holders = holders_of(self._places)
        coming = [
            (Snap(self._run, other, step), _room(sizes[other]))
            for other in range(self._channel.size)
            if holders[other] == rank
        ]
        works = [self._channel.irecv(room, snap.rank, TAG) for snap, room in coming]
        works.append(self._channel.isend(_tensor(data), holders[rank], TAG))
        for work in works:
            work.wait()
        for snap, room in coming:
            self._put(snap, room.numpy().tobytes())

    def _fetch(self, mine: Snap, moves: Sequence[Handover]) -> bytes | None:
        """Returns this rank's snapshot, wherever it lies; None if its seal is not this job's."""
        rank = self._channel.rank
        sends = [
            self._channel.isend(_tensor(self._shelf.read(move.snap)), move.dst, TAG)
            for move in moves
            if move.src == rank != move.dst
        ]
        move = next(move for move in moves if move.dst == rank)
        if move.src == rank:
            data = self._shelf.read(mine)
        else:
            room = _room(move.num_bytes)
            self._channel.irecv(room, move.src, TAG).wait()
            data = room.numpy().tobytes()
        for send in sends:
            send.wait()
        content = self._shelf.open(mine, data)
        if content is not None and move.src != rank:
            self._put(mine, data)
        return content

    def _forget_after(self, step: int) -> None:
        """Forgets what will be made again. Every rank; none makes anything before all have forgotten."""
        self._shelf.forget_after(self._run, step)
        self._channel.exchange(b"")


def require_keepable(phases: Phases, *, is_auto: bool, is_elastic: bool, every: int) -> None:
    """Makes sure that a snapshot of all ranks means something.

    Args:
        phases: of the run.
        is_auto: whether the plan is still to be found.
        is_elastic: whether members come and go.
        every: steps between snapshots.

    Raises:
        AttachError: it does not.
    """
    if every < 1:
        raise AttachError(f"attach(remember={every}): give a number of steps from 1, or leave it out.")
    if is_elastic:
        raise AttachError(
            "attach(remember=...) is for jobs whose workers are all started anew when one dies; with "
            "tightwire.init(elastic=True) a newcomer takes everything from a worker that trains: leave remember out."
        )
    if is_auto:
        raise AttachError(
            "attach(remember=...) was asked for with plan auto: a job that is started anew would search again; name a "
            "plan, such as the one that `tightwire plan` prints."
        )
    for plan in phases.plans:
        has_quorum = isinstance(plan.sync, Rounds) and plan.sync.quorum_of is not None
        if has_quorum or not isinstance(plan.architecture, AllReduce):
            raise AttachError(
                f"attach(remember=...) keeps what all workers had after the same round, and under {plan} they do not "
                "all meet in rounds; write checkpoints, or choose bsp, a local method or diloco over an all-reduce."
            )


def holders_of(places: Sequence[str]) -> list[int]:
    """Returns, by rank, who keeps a copy of its snapshot: a rank on the next host.

    >>> holders_of(["a", "a", "b", "b"]), holders_of(["a", "b", "b"])
    ([2, 3, 0, 1], [1, 0, 0])
    """
    hosts = list(dict.fromkeys(places))
    ranks = {host: [rank for rank, place in enumerate(places) if place == host] for host in hosts}
    holders = []
    for rank, place in enumerate(places):
        following = ranks[hosts[(hosts.index(place) + 1) % len(hosts)]]
        holders.append(following[ranks[place].index(rank) % len(following)])
    return holders


def plan_recall(told: Sequence[Mapping[str, int]], run: str) -> tuple[int | None, list[Handover]]:
    """Returns the newest step of which there is a snapshot of every rank, and who gives which to whom.

    Args:
        told: by rank, the names and sizes in bytes of what its host holds.
        run: which run's are wanted.
    """
    held: dict[Snap, dict[int, int]] = {}
    for teller, names in enumerate(told):
        for name, size in names.items():
            snap = Snap.parse(name)
            if snap is not None and snap.run == run and snap.rank < len(told):
                held.setdefault(snap, {})[teller] = size
    steps = sorted({snap.step for snap in held}, reverse=True)
    for step in steps:
        wanted = [Snap(run, rank, step) for rank in range(len(told))]
        if all(snap in held for snap in wanted):
            moves = []
            for rank, snap in enumerate(wanted):
                source = rank if rank in held[snap] else min(held[snap])
                moves.append(Handover(snap, source, rank, held[snap][source]))
            return step, moves
    return None, []


def _room(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
