"""How long rounds are whose length follows the loss: heard from all workers, so that all ranks agree."""

from __future__ import annotations

from typing import Any, final

from tightwire.errors import AttachError
from tightwire.sync.rounds import Rounds, Trend


@final
class LengthByLoss:
    """Hears the losses of rounds, and now and then asks the policy how long the next ones are to be (AdaComm)."""

    def __init__(self, sync: Rounds) -> None:
        """Begins with the policy's first length."""
        self._sync = sync
        self._length = sync.steps_of(1)
        self._first: float | None = None  # mean loss of the first round
        self._loss = self._losses = 0.0
        self._steps = 0  # since the length was chosen
        self._highest = self._rate = 0.0  # learning rates: of all so far, and when the length was chosen

    def after(self, loss: float, losses: float, rate: float) -> int:
        """Returns the length of the next round.

        Args:
            loss: sum of what all workers reported in the round just ended.
            losses: how many reports that is.
            rate: the optimizer's learning rate, which is the same on all ranks (the roll compares it).

        Raises:
            AttachError: there were none.
        """
        if losses < 0.5:
            raise AttachError(
                f"{self._sync} follows the loss, and no worker reported one in this round: call "
                "run.report_loss(loss) in every step, before optimizer.step()."
            )
        self._loss, self._losses, self._steps = (
            self._loss + loss,
            self._losses + losses,
            self._steps + self._length,
        )
        self._first = loss / losses if self._first is None else self._first
        self._highest = max(self._highest, rate)
        if self._steps >= self._sync.steps_between_lengths:
            trend = Trend(
                loss=self._loss / self._losses / self._first if self._first > 0 else 1.0,
                rate=rate / self._highest if self._highest > 0 else 1.0,
                rate_fell=rate < self._rate,
            )
            self._length = self._sync.steps_after(trend, self._length)
            self._loss, self._losses, self._steps, self._rate = 0.0, 0.0, 0, rate
        return self._length

    def state_dict(self) -> dict[str, Any]:
        """Returns plain numbers, the same on every rank."""
        return {
            "length": self._length,
            "first": self._first,
            "loss": self._loss,
            "losses": self._losses,
            "steps": self._steps,
            "rates": [self._highest, self._rate],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self._length, self._first = state["length"], state["first"]
        self._loss, self._losses, self._steps = state["loss"], state["losses"], state["steps"]
        self._highest, self._rate = state.get("rates", (0.0, 0.0))  # earlier versions kept none
