"""What newcomers are given besides model and optimizers: where the data is, learning-rate schedulers."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tightwire.runtime.reading import MOST

SCALE_KEYS: Final = ("scale", "_growth_tracker")  # of a GradScaler's state


class Stateful(Protocol):
    """A `StatefulDataLoader`, a learning-rate scheduler, or anything of the user's with these two methods."""

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes up what `state_dict` returned."""


class Carried:
    """Several of them, by name.

    Members change within `optimizer.step()`, or within `backward()` where one died. A scheduler that is stepped after
    every step of the optimizer has then not been for the step under way. `catch_up` steps it for whoever has that step
    behind it already: a newcomer; not a worker that is itself within it, whose loop is about to.
    """

    def __init__(self, members: Mapping[str, Stateful]) -> None:
        self._members = dict(members)
        self._rates: dict[str, CarriedRate | CarriedScale] = {}
        for name, member in members.items():
            if isinstance(member, LRScheduler) and not isinstance(member, ReduceLROnPlateau):
                self._rates[name] = CarriedRate(member)
            elif isinstance(member, GradScaler):
                self._rates[name] = CarriedScale(member)

    @property
    def names(self) -> list[str]:
        """What is carried, in order."""
        return sorted(self._members)

    def note_step(self, step: int) -> None:
        """Learns that `optimizer.step()` is about to return, after so many steps."""
        for rate in self._rates.values():
            rate.note(step)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Returns what each returns, and how schedulers stand to so many steps of the optimizer."""
        rates = {
            name: [rate.is_late(step), rate.is_stepped_often(step)] for name, rate in self._rates.items()
        }
        return {
            name: [member.state_dict(), *rates.get(name, [False, False])]
            for name, member in self._members.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Gives each what it returned elsewhere, asked for so many steps; see `catch_up`."""
        for name, member in self._members.items():
            kept, is_late, is_stepped_often = state[name]
            member.load_state_dict(kept)
            if (rate := self._rates.get(name)) is not None:
                rate.begin_anew(step - is_late, is_stepped_often, is_late=is_late)

    def catch_up(self, *, is_within: bool) -> None:
        """Steps schedulers that were given in the midst of a step.

        Args:
            is_within: whether this worker's loop is within that step, and steps its schedulers itself after it.
        """
        for rate in self._rates.values():
            rate.catch_up(is_within=is_within)

    def scales(self) -> dict[str, dict[str, float]]:
        """Returns the scale of each GradScaler, and what it counts until it tries a larger one."""
        scalers = {n: m.state_dict() for n, m in self._members.items() if isinstance(m, GradScaler)}
        return {n: {key: state[key] for key in SCALE_KEYS} for n, state in scalers.items() if state}

    def take_scales(self, scales: Mapping[str, Mapping[str, float]]) -> None:
        """Takes up what `scales` returned elsewhere."""
        for name in self.scales().keys() & scales.keys():
            member = self._members[name]
            member.load_state_dict({**member.state_dict(), **scales[name]})

    def count_on(self, steps: int) -> None:
        """Has schedulers count steps that others made and this worker did not."""
        for rate in self._rates.values():
            if rate.is_stepped_often():
                rate.count_on(steps)


def scales_of(data: bytes) -> dict[str, dict[str, float]] | None:
    """Reads what `Carried.scales` returned, as JSON; None for whatever is nothing like it, however malformed."""
    with suppress(ValueError, RecursionError):
        content = json.loads(data)
        if isinstance(content, dict) and all(map(_is_scale, content.values())):
            return content
    return None


def _is_scale(state: Any) -> bool:
    if not isinstance(state, dict) or state.keys() != set(SCALE_KEYS):
        return False
    scale, counted = (state[key] for key in SCALE_KEYS)
    return type(scale) is float and 0 < scale < math.inf and type(counted) is int and 0 <= counted < MOST


class CarriedRate:
    """A learning-rate scheduler, and whether it is stepped after every step of the optimizer: as it lately was."""

    def __init__(self, scheduler: LRScheduler) -> None:
        self._scheduler, self._first = scheduler, scheduler.last_epoch
        self._ends: deque[tuple[int, int]] = deque(maxlen=2)  # steps, and epochs by then
        self._was_stepped_often: bool | None = None
        self._is_behind = False

    def note(self, step: int) -> None:
        """Learns that so many steps have ended."""
        self._ends.append((step, self._scheduler.last_epoch))

    def is_stepped_often(self, step: int = 0) -> bool:
        """Whether it is stepped after every step; of the very first one, `step` 1, that is taken for granted."""
        if self._was_stepped_often is not None and len(self._ends) < 2:
            return self._was_stepped_often
        if not self._ends:
            return step == 1 and self._scheduler.last_epoch == self._first
        epochs = [*(epoch for _, epoch in self._ends), self._scheduler.last_epoch]
        return all(after > before for before, after in itertools.pairwise(epochs))

    def is_late(self, step: int) -> bool:
        """Whether it is yet to be stepped for the last of so many steps."""
        ended = self._ends[-1][0] if self._ends else 0
        return step == ended + 1 and self.is_stepped_often(step)

    def begin_anew(self, step: int, is_stepped_often: bool, *, is_late: bool) -> None:
        """Goes on from so many steps, which are in it."""
        self._ends.clear()
        self._was_stepped_often, self._is_behind = is_stepped_often, is_late
        self.note(step)

    def catch_up(self, *, is_within: bool) -> None:
        """Is stepped where it was given late, unless the loop is about to do that."""
        is_behind, self._is_behind = self._is_behind, False
        if is_behind and not is_within:
            self.count_on(1)

    def count_on(self, steps: int) -> None:
        """Is stepped so many times."""
        ended = self._ends[-1][0] if self._ends else 0
        vars(self._scheduler.optimizer)["_opt_called"] = True  # it did step, elsewhere: PyTorch would warn
        for _ in range(steps):
            self._scheduler.step()
        self.begin_anew(ended + steps, is_stepped_often=True, is_late=self._is_behind)


class CarriedScale:
    """A GradScaler, which is updated after every step. All must have one scale, for means are of scaled gradients."""

    def __init__(self, scaler: GradScaler) -> None:
        self._scaler, self._ended, self._is_behind = scaler, 0, False

    def note(self, step: int) -> None:
        """Learns that so many steps have ended."""
        self._ended = step

    def is_stepped_often(self, step: int = 0) -> bool:
        """Whether it counts steps that others made: where workers make unlike numbers, each has its own scale."""
        return False

    def is_late(self, step: int) -> bool:
        """Whether it is yet to be updated for the last of so many steps."""
        return step == self._ended + 1

    def begin_anew(self, step: int, is_stepped_often: bool, *, is_late: bool) -> None:
        """Goes on from so many steps, which are in it."""
        self._ended, self._is_behind = step, is_late

    def catch_up(self, *, is_within: bool) -> None:
        """Is updated, as after a step that was made, where it was given late, unless the loop is about to do that."""
        is_behind, self._is_behind = self._is_behind, False
        state = self._scaler.state_dict()
        if not is_behind or is_within or not state:  # one that is switched off remembers nothing
            return
        state["_growth_tracker"] += 1
        if state["_growth_tracker"] == state["growth_interval"]:
            state |= {"scale": state["scale"] * state["growth_factor"], "_growth_tracker": 0}
        self._scaler.load_state_dict(state)

    def count_on(self, steps: int) -> None:
        """Stays as it is."""
