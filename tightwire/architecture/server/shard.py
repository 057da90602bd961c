"""One shard: some of the parameters, and who may go on when with what of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tightwire.architecture.allreduce.seeds import message_seed
from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.messages import NO_FLAG, Flag, Header, Kind, unpack_state
from tightwire.architecture.server.presence import Presence, Seat
from tightwire.architecture.server.turns import Turns
from tightwire.architecture.server.weights import Weights
from tightwire.errors import TransportError
from tightwire.sync import Served

# Of so many steps, the newest, the rates are remembered, to be compared with those of workers that come later.
MOST_TOLD = 256


class Shard:
    """Takes gradients and gives parameters, as a policy says; any thread may call, one per worker at a time.

    Parameters, sums and the optimizer's state are where the layout's buckets are: in host memory, or on this rank's
    device. There, what a thread asks for follows what the thread before it asked for (`Turns`), and the host waits
    once per update, to learn whether the mean is finite.

    Attributes:
        updates: made so far.
        clock: of the last round that was over; where each gradient makes an update, of the furthest worker.
        late: gradients dropped because they came after their round.
        leads: how often a worker read so many clocks ahead of the slowest.
    """

    def __init__(
        self,
        layout: MessageLayout,
        policy: Served,
        parameters: Mapping[str, Tensor],
        optimizer: Optimizer,
        names: Mapping[int, str],
        *,
        workers: Sequence[int],
        seed: int,
        deadline_s: float,
        late_s: float,
        owner: int = 0,
        ends_on_loss: bool = False,
    ) -> None:
        """Copies parameters and the optimizer's state.

        Args:
            layout: how they travel.
            policy: who waits for whom.
            parameters: by name.
            optimizer: the user's.
            names: of the optimizer's parameters, by identity.
            workers: world ranks.
            seed: of stochastic codecs.
            deadline_s: after how long of waiting for a worker a warning names it; whoever waits hears more often that
                its server lives.
            late_s: how long one may wait for a worker that lives; one that does not is soon `gone`.
            owner: the rank that serves the shard.
            ends_on_loss: whether a worker that is lost ends all waits, with a `PeerError`, and nothing changes any
                more, so that members can begin another world; else the others go on without it. What cannot be mended
                so is then another error.
        """
        self._owner = owner
        self._layout, self._policy, self._seed = layout, policy, seed
        self._weights = Weights(layout, parameters, optimizer, names)
        self._quorum = policy.quorum(len(workers))
        self._round = 0
        self._pending: dict[int, Tensor | None] = {}
        self._landed = layout.room(
            layout.pull_bytes(0, exact=True)
        )  # what all last ended with, as all get it
        self._landings = 0
        self._dropped_in: set[int] = set()
        self._told: dict[
            int, tuple[int, list[float]]
        ] = {}  # rates by count of steps, and who told them first
        self._are_even = True  # whether all workers have made as many steps whenever all landed
        self.updates = 0
        self.clock = 0
        self.late = 0
        self.leads: dict[int, int] = {}
        follows = policy.compensation > 0 or not layout.is_plain
        self._seats = [
            Seat(
                rank=rank,
                has=[b.flat.clone() for b in self._weights.values] if follows else [],
                push=layout.room(0 if rank == owner else layout.push_bytes(1)),
                pull=layout.room(layout.pull_bytes(1)),
                heard_s=time.monotonic(),
            )
            for rank in workers
        ]
        self._changed = Turns(layout.device)  # after all that was asked for so far
        self._presence = Presence(
            self._seats,
            self._changed,
            policy=str(policy),
            owner=owner,
            deadline_s=deadline_s,
            late_s=late_s,
            ends_on_loss=ends_on_loss,
        )

    def room_for(self, worker: int, num_bytes: int) -> Tensor:
        """Returns (num_bytes,) uint8, where a worker's push is to land; what lands there follows the last turn."""
        with self._changed:
            seat = self._seats[worker]
            if seat.push.numel() < num_bytes:
                seat.push = self._layout.room(num_bytes)
            return seat.push[:num_bytes]

    def push(
        self, worker: int, request: Header, payload: Tensor | None, on_wait: Callable[[], None]
    ) -> tuple[Header, Tensor]:
        """Takes a worker's gradient and returns what it may go on with; blocks while the policy has it wait.

        Args:
            worker: its number among the workers.
            request: with the worker's clock.
            payload: the push, None if the request says that it is empty; must not change until this returns.
            on_wait: called now and then while others are waited for.

        Returns:
            The reply's header and payload; the latter is reused by the worker's next call.

        Raises:
            PeerError: a worker that the policy waits for has sent nothing for too long; or the optimizer failed here,
                or the device's memory is full.
            TransportError: a push of a step that was not to come.
        """
        with self._changed:
            seat = self._presence.hear(worker)
            self.require_sound()
            if request.clock != seat.clock + 1:
                raise TransportError(
                    f"rank {seat.rank} sent the gradient of step {request.clock}, and step {seat.clock + 1} was due: "
                    "ranks loaded different checkpoints, or one attached again alone."
                )
            seat.clock, seat.is_under_way = request.clock, True
            try:
                if self._quorum == 0:
                    flags, staleness = self._take(seat, payload)
                else:
                    flags, staleness = self._collect(worker, request.round, payload, on_wait)
                if (lead := self._policy.lead) is not None:
                    due = seat.clock - lead
                    self._presence.wait(
                        lambda: [s for s in self._presence.present if s.clock < due], f"step {due}", on_wait
                    )
                return self._reply(worker, flags, staleness)
            except torch.OutOfMemoryError as full:
                raise self._fail(
                    f"{self._layout.device} had no memory left. Take a smaller batch, or shards in host memory (ps "
                    "without on_device), and go on from a checkpoint"
                ) from full

    def leave(self, worker: int, on_wait: Callable[[], None]) -> tuple[Header, Tensor]:
        """Lets a worker stop until all have; returns the parameters as they are then, exactly.

        Raises:
            PeerError: a worker has sent nothing for too long.
        """
        with self._changed:
            seat = self._presence.hear(worker)
            seat.state = "left"
            self._changed.notify_all()  # who waits for this worker's next step goes on
            landing = self._landings + 1
            self._close_round()
            self._land_if_all_left()
            self._presence.wait(
                lambda: self._presence.present if self._landings < landing else [],
                "the end of its steps",
                on_wait,
            )
            # Nobody changes it before this worker has got it, and has come to the next end.
            return self._header(seat, NO_FLAG, 0), self._landed

    def gone(self, worker: int, *, by_intent: bool) -> None:
        """Goes on without a worker for good, and says so if nobody meant it to."""
        with self._changed:
            seat = self._seats[worker]
            if not self._presence.lose(seat, by_intent=by_intent):
                return
            self._close_round()
            self._land_if_all_left()
            self._changed.notify_all()
        if not by_intent and seat.is_under_way and not self.has_failed:
            warnings.warn(
                f"the server has lost rank {seat.rank} after its step {seat.clock}; the other workers go on without "
                "it. Look at its log.",
                stacklevel=2,
            )

    def freeze(self) -> None:
        """Lets nothing change any more; whoever waits or asks ends with a `PeerError`."""
        with self._changed:
            self._presence.freeze()

    def state_dict(self, *, values: bool = True) -> dict[str, Any]:
        """Returns copies of parameters if asked, the optimizer's memory by parameter name, and counters."""
        with self._changed:
            return {
                **self._weights.state_dict(values=values),
                "updates": self.updates,
                "clock": max((seat.clock for seat in self._seats), default=self.clock),
            }

    def take_over(
        self,
        values: Mapping[str, Tensor],
        optimizer: Mapping[str, Mapping[str, Any]],
        *,
        updates: int,
        clock: int,
        are_even: bool,
    ) -> None:
        """Takes up what others had of these parameters; those that nobody had stay as they are.

        Args:
            values: by name.
            optimizer: what is remembered, by name.
            updates: made so far.
            clock: of the last round that is in all of them.
            are_even: whether workers have made as many steps.
        """
        state = self.state_dict()
        kept = {name: memory for name, memory in state["optimizer"].items() if name not in values}
        self.load_state_dict(
            {
                "values": {**state["values"], **values},
                "optimizer": {**kept, **optimizer},
                "updates": updates,
                "clock": clock,
            }
        )
        self._are_even = are_even

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned; workers see it when all have left.

        Raises:
            AttachError: a checkpoint of other parameters.
        """
        with self._changed:
            self._weights.load_state_dict(state)
            self.updates, self.clock = state["updates"], state["clock"]
            for seat in self._seats:
                seat.clock = state["clock"]

    def restart(self, parameters: Mapping[str, Tensor], clock: int) -> None:
        """Takes up other parameters, at another clock, and forgets the optimizer's memory."""
        self.load_state_dict(
            {
                "values": {name: parameters[name] for name in self._weights.names},
                "optimizer": {},
                "updates": self.updates,
                "clock": clock,
            }
        )

    def load_packed(self, packed: Tensor) -> None:
        """Takes up a packed state."""
        self.load_state_dict(unpack_state(packed))

    def _take(self, seat: Seat, payload: Tensor | None) -> tuple[Flag, int]:
        """Makes an update from one gradient."""
        staleness = self.updates - seat.read_at
        self.clock = max(self.clock, seat.clock)
        self._changed.notify_all()  # its clock has moved
        if payload is None:
            return Flag.EMPTY, staleness
        rate = self._policy.rate(staleness, len(self._seats))
        return self._update([(seat, payload)], rate), staleness

    def _collect(
        self, worker: int, read_in: int, payload: Tensor | None, on_wait: Callable[[], None]
    ) -> tuple[Flag, int]:
        """Adds a gradient to its round, and waits until that is over.

        Where rounds do without some gradients, one that was computed with an older round's parameters is late, be they
        those of another shard: shards close rounds at different moments, and such a gradient is as stale here.
        """
        mine, seat = self._round, self._seats[worker]
        if self._quorum >= len(self._seats):
            read_in = seat.read_in
        if (oldest := min(seat.read_in, read_in)) < mine:
            self.late += 1
            return Flag.LATE, mine - oldest
        self._pending[worker] = payload
        self._close_round()
        self._presence.wait(
            lambda: (
                [s for i, s in enumerate(self._seats) if s.state == "present" and i not in self._pending]
                if self._round == mine
                else []
            ),
            f"the gradient of round {mine + 1}",
            on_wait,
        )
        return (Flag.DROPPED if mine in self._dropped_in else NO_FLAG), 0

    def _close_round(self) -> None:
        """Makes the round's update if enough gradients are here."""
        present = len(self._presence.present)
        if self.has_failed or self._presence.is_ended or not self._pending:
            return
        if len(self._pending) < min(self._quorum, present):
            return
        pushes = [(self._seats[w], payload) for w, payload in sorted(self._pending.items())]
        gradients = [(seat, payload) for seat, payload in pushes if payload is not None]
        flags = self._update(gradients, 1.0) if len(gradients) == len(pushes) else Flag.DROPPED
        if flags:
            self._dropped_in.add(self._round)
        self.clock = max(self.clock, *(seat.clock for seat, _ in pushes))
        self._pending.clear()
        self._round += 1
        self._changed.notify_all()

    def _update(self, pushes: Sequence[tuple[Seat, Tensor]], rate: float) -> Flag:
        """Steps with the mean of some gradients, unless that is not finite."""
        used = torch.zeros(len(self._layout.names), dtype=torch.uint8)
        for place, (seat, payload) in enumerate(pushes):
            here, numbers, messages = self._layout.open_push(payload, seat.clock)
            used |= here.cpu()
            settings = numbers.tolist()
            self._compare(seat, settings)
            if place == 0:
                self._weights.settings.write(settings, rate=rate)
            self._weights.gather(messages, seat.clock, anew=place == 0)
        self._weights.divide(len(pushes))
        if not self._weights.are_finite():
            return Flag.DROPPED
        if strength := self._policy.compensation:
            self._weights.compensate(pushes[0][0].has, strength)
            if not self._weights.are_finite():
                return Flag.DROPPED
        try:
            self._weights.step(used.tolist())
        except Exception as error:  # of the user's; every worker is to learn of it
            raise self._fail(
                f"{self._weights.optimizer_kind} raised {type(error).__name__}: {error}"
            ) from error
        self.updates += 1
        return NO_FLAG

    def _compare(self, seat: Seat, settings: list[float]) -> None:
        """Makes sure that workers step with the same rates at the same count of steps.

        Raises:
            PeerError: they do not; every worker is to learn of it.
        """
        if not self._are_even:
            return
        rank, told = self._told.setdefault(seat.clock, (seat.rank, settings))
        if len(self._told) > MOST_TOLD:
            del self._told[min(self._told)]
        if told != settings and (where := self._weights.settings.differences(told, settings)):
            raise self._presence.fail(
                f"rank {rank} and rank {seat.rank} train with other rates in their step {seat.clock}: {where}. Give "
                "every rank the same rates at the same step, and attach again.",
                [seat.rank],
            )

    def _fail(self, why: str) -> TransportError:
        """Has every worker learn that this shard's owner failed, and returns the error that says why."""
        return self._presence.fail(f"rank {self._owner}, which serves a shard, failed: {why}", [self._owner])

    @property
    def has_failed(self) -> bool:
        """Whether the optimizer raised, or ranks differ."""
        return self._presence.has_failed

    def require_sound(self) -> None:
        """Makes sure that the optimizer has not failed, and that nobody is lost whose loss ends all waits.

        Raises:
            PeerError: it has; names this rank, or those that are lost.
            TransportError: it has, where a loss would be mended.
        """
        self._presence.require_sound()

    def _reply(self, worker: int, flags: Flag, staleness: int) -> tuple[Header, Tensor]:
        seat = self._seats[worker]
        seat.read_at, seat.read_in = self.updates, self._round
        header = self._header(seat, flags, staleness)
        lead = seat.clock - header.slowest
        self.leads[lead] = self.leads.get(lead, 0) + 1
        codecs = self._layout.codecs(seat.clock)
        for number, (codec, message) in enumerate(zip(codecs, self._room(seat), strict=True)):
            value = self._weights.values[number].flat
            if self._layout.is_plain:
                message.copy_(value.view(torch.uint8))
            elif value.numel():
                difference = value - seat.has[number]
                codec.encode(difference, message, seed=message_seed(self._seed, self.updates, number))
                codec.decode(message, seat.has[number], add=True)
        if self._policy.compensation and self._layout.is_plain:
            for has, bucket in zip(seat.has, self._weights.values, strict=True):
                has.copy_(bucket.flat)
        return header, seat.pull[: self._layout.pull_bytes(seat.clock)]

    def _header(self, seat: Seat, flags: Flag, staleness: int) -> Header:
        slowest = min((s.clock for s in self._presence.present), default=seat.clock)
        return Header(
            kind=Kind.VALUES,
            flags=flags,
            clock=seat.clock,
            slowest=min(slowest, seat.clock),
            staleness=staleness,
            round=seat.read_in,
            updates=self.updates,
        )

    def _room(self, seat: Seat) -> list[Tensor]:
        """Returns the parts of the worker's pull, in memory that grows when it must."""
        num_bytes = self._layout.pull_bytes(seat.clock)
        if seat.pull.numel() < num_bytes:
            seat.pull = self._layout.room(num_bytes)
        return self._layout.open_pull(seat.pull, seat.clock)

    def _land_if_all_left(self) -> None:
        """Once nobody is on the way, all have what all end with, and begin again together."""
        if self._presence.present:
            return
        for part, bucket in zip(
            self._layout.open_pull(self._landed, 0, exact=True), self._weights.values, strict=True
        ):
            part.copy_(bucket.flat.view(torch.uint8))
        self._landings += 1
        self._round = 0  # in all shards alike
        self._dropped_in.clear()
        clock = self.clock = max((seat.clock for seat in self._seats), default=self.clock)
        self._are_even &= all(seat.clock == clock for seat in self._seats)
        self._told.clear()
        for seat in self._seats:
            seat.clock, seat.read_at, seat.read_in = clock, self.updates, self._round
            if seat.state == "left":
                seat.state, seat.is_under_way = "present", False
            for has, bucket in zip(seat.has, self._weights.values, strict=False):
                has.copy_(bucket.flat)
        self._changed.notify_all()
