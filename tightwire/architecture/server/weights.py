"""What a shard holds: parameters, the gradients that come for them, and the user's own optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.optimizer import (
    Settings,
    load_optimizer_state,
    optimizer_for,
    optimizer_state,
)
from tightwire.buckets import Bucket
from tightwire.compression.checks import FiniteCheck
from tightwire.errors import AttachError


class Weights:
    """Parameters that are stepped with sums of what workers sent. Knows nothing of who waits for whom.

    They, the sums and the optimizer's state are where the layout's buckets are: in host memory, or on a device.

    Attributes:
        settings: of the optimizer.
        values: the parameters, in the layout's buckets.
    """

    def __init__(
        self,
        layout: MessageLayout,
        parameters: Mapping[str, Tensor],
        optimizer: Optimizer,
        names: Mapping[int, str],
    ) -> None:
        """Copies parameters and the optimizer's state.

        Args:
            layout: how they travel.
            parameters: by name.
            optimizer: the user's.
            names: of the optimizer's parameters, by identity.
        """
        self._layout = layout
        self.values = [Bucket(bucket) for bucket in layout.buckets]
        self._gradients = [Bucket(bucket) for bucket in layout.buckets]
        for bucket in self.values:
            bucket.pack({name: parameters[name] for name in bucket.views})
        self._copies = {n: Parameter(view) for bucket in self.values for n, view in bucket.views.items()}
        self._optimizer = optimizer_for(optimizer, self._copies, names)
        self.settings = Settings(self._optimizer)
        self._checks = [FiniteCheck(layout.device) for _ in layout.buckets]

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return list(self._copies)

    def gather(self, messages: Sequence[Tensor], clock: int, *, anew: bool) -> None:
        """Adds a gradient, as a worker sent it at its clock, to those that came before, or begins with it."""
        for codec, message, bucket in zip(self._layout.codecs(clock), messages, self._gradients, strict=True):
            if bucket.flat.numel():
                codec.decode(message, bucket.flat, add=not anew)

    def divide(self, count: int) -> None:
        """Makes the mean of a sum of so many."""
        if count > 1:
            for bucket in self._gradients:
                bucket.flat.div_(count)

    def compensate(self, read: Sequence[Tensor], strength: float) -> None:
        """Makes g into g + λ g⊙g⊙(x_now − x_read), λ being the strength."""
        for gradient, value, old in zip(self._gradients, self.values, read, strict=True):
            g = gradient.flat
            g.addcmul_(g * g, value.flat - old, value=strength)

    def are_finite(self) -> bool:
        """Whether all gradients are; blocks until a device has found out.

        Raises:
            TensorError: a message could not be decoded.
        """
        for check, bucket in zip(self._checks, self._gradients, strict=True):
            check.ask(bucket.flat)
        answers = [bool(check) for check in self._checks]  # each is to be looked at
        return all(answers)

    def step(self, used: Sequence[int]) -> None:
        """Steps those of the layout's parameters that are used; raises what the user's optimizer does."""
        views = {name: view for bucket in self._gradients for name, view in bucket.views.items()}
        for name, is_used in zip(self._layout.names, used, strict=True):
            self._copies[name].grad = views[name] if is_used else None
        self._optimizer.step()

    @property
    def optimizer_kind(self) -> str:
        """The name of the optimizer's class."""
        return type(self._optimizer).__name__

    def state_dict(self, *, values: bool = True) -> dict[str, Any]:
        """Returns copies of parameters if asked, and the optimizer's memory, by parameter name."""
        return {
            "values": {n: copy.detach().clone() for n, copy in self._copies.items()} if values else {},
            "optimizer": optimizer_state(self._optimizer, self._copies),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Raises:
            AttachError: a checkpoint of other parameters.
        """
        if state["values"].keys() != self._copies.keys():
            raise AttachError(
                f"the checkpoint's shard holds {_some(state['values'])}, this one {_some(self._copies)}; load it "
                "on as many ranks, under the same ps, with the same model."
            )
        for name, copy in self._copies.items():
            copy.detach().copy_(state["values"][name])
        load_optimizer_state(self._optimizer, self._copies, state["optimizer"])


def _some(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
