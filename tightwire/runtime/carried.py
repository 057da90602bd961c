"""What newcomers are given besides model and optimizers: where the data is, learning-rate schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch.optim.lr_scheduler import LRScheduler


class Stateful(Protocol):
    """A `StatefulDataLoader`, a learning-rate scheduler, or anything of the user's with these two methods."""

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes up what `state_dict` returned."""


class Carried:
    """Several of them, by name.

    Members change within `optimizer.step()`, or within `backward()` where one died. In the first case a scheduler that
    is stepped after every step of the optimizer has not been yet, so that of a newcomer is stepped for it.
    """

    def __init__(self, members: Mapping[str, Stateful]) -> None:
        self._members = dict(members)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Returns what each returns, after so many steps of the optimizer."""
        return {
            name: [member.state_dict(), isinstance(member, LRScheduler) and member.last_epoch == step - 1]
            for name, member in self._members.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives each what it returned elsewhere."""
        for name, member in self._members.items():
            kept, is_late = state[name]
            member.load_state_dict(kept)
            if is_late and isinstance(member, LRScheduler):
                member.step()
