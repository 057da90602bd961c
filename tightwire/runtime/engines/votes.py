"""The small message that begins a round of a local method: who takes part, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tightwire.runtime.context import RunContext


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What one worker brings to a vote, or what all brought together.

    Attributes:
        present: 1 from a worker whose training goes on; 0 from one that only takes part until all are done.
        weight: in the round's mean; 0 from a worker that changed nothing, or is not to count.
        loss: sum of the losses reported in the round just ended.
        losses: how many.
        leaving: 1 from a worker that is about to leave for good.
    """

    present: float = 0.0
    weight: float = 0.0
    loss: float = 0.0
    losses: float = 0.0
    leaving: float = 0.0


class Ballot:
    """Adds up votes over all ranks of a transport, on a channel of its own. Every rank, in the same order.

    Attributes:
        bytes_sent: in one vote.
    """

    def __init__(self, context: RunContext) -> None:
        self._control = context.control(5)
        self._workers = context.transport.size
        self.bytes_sent = self._control.bytes_sent

    def sum(self, mine: Votes) -> Votes:
        """Returns the sum of all ranks' votes, the same bits on every rank; blocks."""
        values = torch.tensor([mine.present, mine.weight, mine.loss, mine.losses, mine.leaving])
        self._control.run(values, values, seed=0)
        present, weight, loss, losses, leaving = (values * self._workers).tolist()
        return Votes(present=present, weight=weight, loss=loss, losses=losses, leaving=leaving)
