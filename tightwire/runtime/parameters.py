"""Parameters on their way: rounds of local methods, in which workers agree on where to go on from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tightwire.architecture.round import Round
from tightwire.buckets import Bucket
from tightwire.errors import AttachError
from tightwire.runtime.ahead import PREFIX, Ahead
from tightwire.runtime.engines.memory import memory
from tightwire.runtime.exchange import Exchange
from tightwire.runtime.outer import OuterStep


class Parameters:
    """Averages parameters by their difference to the last agreed ones, so that any codec serves.

    A round is `start`, then `land`: x_start ← outer step with mean(x_start − x_end), and every worker goes on from
    there. What a worker did between the two is kept: it is added to the new start, or blended with it.

    Attributes:
        anchors: the parameters that all workers agreed on last, one bucket of them per bucket of the exchange.
        exchange: what averages.
        under_way: whether a round was started and has not landed.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        exchange: Exchange,
        outer: OuterStep,
        *,
        late: bool = False,
        blend: float | None = None,
        pull: float = 0.0,
        clip: float = math.inf,
        ahead: Ahead | None = None,
    ) -> None:
        """Takes the present parameters as agreed.

        Args:
            parameters: by name, equal on all ranks.
            exchange: of buckets for these parameters.
            outer: the step that follows the mean.
            late: whether workers go on between `start` and `land`.
            blend: when late, x ← blend · x + (1 − blend) · x_start; None: what x changed since is added to x_start.
            pull: above 0, workers are not set to x_start but drawn towards the old one by this share of their distance.
            clip: norm that a mean is shortened to.
            ahead: goes on with this worker's own change when a round starts; None: when it lands.
        """
        self.exchange = exchange
        self.under_way = False
        self._parameters = parameters
        self._outer = outer
        self._blend, self._pull, self._clip = blend, pull, clip
        self._finite: bool | None = None
        layouts = [bucket.layout for bucket in exchange.buckets]
        self.anchors = tuple(map(Bucket, layouts))
        self._sent = tuple(map(Bucket, layouts)) if late and blend is None else ()
        self._ahead = ahead
        outer.begin(self.anchors)
        if ahead is not None:
            ahead.begin(self.anchors, parameters)
        self.anchor_here()

    @torch.no_grad()
    def anchor_here(self) -> None:
        """Takes the present parameters, equal on all ranks, as the agreed ones."""
        self._pack(self.anchors)
        if self._ahead is not None:
            self._ahead.forget()

    @torch.no_grad()
    def start(self, now: Round, *, share: float = 1.0, spoiled: bool = False) -> None:
        """Sends what this worker changed since the last agreement on its way.

        Args:
            now: the round, the same on every rank.
            share: this worker's weight in the mean, over the average weight.
            spoiled: this rank's parameters are not to be had; the mean will not be finite.

        Contract: every rank; does not block; sends `exchange.bytes_in` the round.
        """
        self.under_way, self._finite = True, None
        self._pack(self._sent)
        self.exchange.begin(now)
        for number, (anchor, bucket) in enumerate(zip(self.anchors, self.exchange.buckets, strict=True)):
            if self._ahead is not None:
                self._ahead.measure(number, bucket)
            else:
                for name, difference in bucket.views.items():
                    self._outer.measure(name, anchor.views[name], self._parameters[name], difference)
            if spoiled:
                bucket.flat.fill_(math.nan)
            elif share != 1.0:
                bucket.flat.mul_(share)
            if self._ahead is not None and not spoiled:
                self._ahead.send(number, bucket.flat)
            self.exchange.ready(number)
        self.exchange.end()
        if self._ahead is not None and not spoiled:
            self._ahead.go_on()

    def arrive(self) -> bool:
        """Waits until the mean is here; returns whether it is finite, the same on every rank."""
        if self._finite is None:
            self._finite = self.exchange.wait()
        return self._finite

    @torch.no_grad()
    def land(self, present: float, *, waited: bool = False) -> bool:
        """Steps with the mean and goes on from where it leads.

        Args:
            present: how many workers' changes the mean holds.
            waited: whether nothing was done since `start`, whatever the policy says.

        Returns:
            Whether the mean was finite; if not, all ranks alike go back to the parameters agreed on before.
        """
        finite = self.arrive()
        self.under_way = False
        if finite and self._pull:
            for name, anchor in self._views(self.anchors):
                self._parameters[name].lerp_(anchor, self._pull)
        if finite:
            self._shorten()
            self._outer.step(self.exchange.buckets, present)
        else:
            self._outer.abandon()
        if finite and self._pull:
            return True
        if self._ahead is not None and finite and not waited:
            return True  # it goes on from there when the next round starts
        if not finite or waited or (self._blend is None and not self._sent):
            self.go_to_anchor()
        elif self._blend is not None:
            for name, anchor in self._views(self.anchors):
                self._parameters[name].lerp_(anchor, 1.0 - self._blend)
        else:
            sent = dict(self._views(self._sent))
            for name, anchor in self._views(self.anchors):
                self._parameters[name].sub_(sent[name]).add_(anchor)
        return finite

    def _shorten(self) -> None:
        """Clips the mean, alike on every rank."""
        if self._clip == math.inf:
            return
        flats = [bucket.flat for bucket in self.exchange.buckets if bucket.flat.numel()]
        norm = math.hypot(*(float(torch.linalg.vector_norm(flat)) for flat in flats))
        if norm > self._clip:
            for flat in flats:
                flat.mul_(self._clip / norm)

    @torch.no_grad()
    def distance(self) -> float:
        """Returns the norm of what this worker changed since the last agreement."""
        pairs = ((anchor, self._parameters[name]) for name, anchor in self._views(self.anchors))
        return math.sqrt(sum(float((anchor - p).double().square().sum()) for anchor, p in pairs))

    @torch.no_grad()
    def go_to_anchor(self) -> None:
        """Makes parameters the agreed ones."""
        for anchor in self.anchors:
            anchor.unpack({name: self._parameters[name] for name in anchor.views})
        if self._ahead is not None:
            self._ahead.forget()

    def drop(self) -> None:
        """Waits for what is under way, and forgets it."""
        if self.under_way:
            self.arrive()
            self.under_way = False

    def abandon(self) -> None:
        """Forgets what is under way, and will never arrive."""
        self.under_way, self._finite = False, None
        if self._ahead is not None:
            self._ahead.owe()

    def agreed(self) -> dict[str, Tensor]:
        """Returns the parameters agreed on last, by name; shares memory."""
        return dict(self._views(self.anchors))

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of what must survive a checkpoint, by parameter name; waits for what is under way."""
        pending = {"means": {}, "sent": {}, "finite": True} if not self.under_way else self._pending()
        return {
            "memory": memory(self.exchange.averagers),
            "anchors": _copies(self._views(self.anchors)),
            "outer": self._outer_state(),
            "pending": pending,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up anchors, the outer optimizer's state and what was under way; not the exchange's memory.

        Raises:
            AttachError: what was under way in the checkpoint belongs to other fragments of the model.
        """
        self.drop()
        for anchor in self.anchors:
            anchor.pack({name: state["anchors"][name] for name in anchor.views})
        outer = state["outer"]
        if self._ahead is not None:
            self._ahead.load_state_dict(outer)
            outer = {
                n: {k: v for k, v in kept.items() if not k.startswith(PREFIX)} for n, kept in outer.items()
            }
        self._outer.load_state_dict({name: kept for name, kept in outer.items() if kept})
        means, sent = state["pending"]["means"], state["pending"]["sent"]
        buckets = self.exchange.buckets
        names = {name for bucket in buckets for name in bucket.views}
        held = names & set(means)
        if held and held != names:
            raise AttachError(
                "the checkpoint was made while fragments were under way that this plan cuts otherwise; load it "
                "under the schedule it was saved with."
            )
        self.under_way = bool(held)
        self._finite = state["pending"]["finite"] if held else None
        for bucket in buckets if held else ():
            bucket.pack({name: means[name] for name in bucket.views})
        for bucket in self._sent if held else ():
            bucket.pack({name: sent[name] for name in bucket.views})

    def _outer_state(self) -> dict[str, dict[str, Tensor]]:
        state = self._outer.state_dict()
        if self._ahead is not None:
            for name, kept in self._ahead.state_dict().items():
                state[name] = state.get(name, {}) | kept
        return state

    def _pending(self) -> dict[str, Any]:
        finite = self.arrive()
        means = self._views(self.exchange.buckets)
        return {"means": _copies(means), "sent": _copies(self._views(self._sent)), "finite": finite}

    def _pack(self, buckets: Iterable[Bucket]) -> None:
        for bucket in buckets:
            bucket.pack({name: self._parameters[name].detach() for name in bucket.views})

    def _views(self, buckets: Iterable[Bucket]) -> Iterable[tuple[str, Tensor]]:
        return ((name, view) for bucket in buckets for name, view in bucket.views.items())


def _copies(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in named}
