"""What those who lack something are given by the member that is furthest: all that a newcomer trains on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tightwire.errors import TransportError
from tightwire.runtime.agreement import assign
from tightwire.runtime.reading import MOST


@dataclass(frozen=True, kw_only=True)
class Luggage:
    """Plain values and tensors.

    Attributes:
        model: parameters and buffers, by name.
        outcome: parameters that all who agreed alike have in common, by name.
        optimizers: what each remembers.
        engine: what the engine hands over, and nothing where it was lost in the midst of a change of plan.
        step: optimizer steps that a newcomer has behind it.
        lead: see `InForce`, as `behind`.
        behind: steps that others made and the source did not.
        step_s: what a step usually takes; 0 where nobody knows.
        plans: that is asked for, with its phases, and that is in force.
        observed: what was measured of the job; see `Observed.state`.
        told: at the last meeting; see `Told.to_list`.
        carried: what else the user gave; see `Carried`.
        owed: the options of groups in the source's last step, if its round is still to be repeated; see `Position`.
    """

    model: Mapping[str, Tensor]
    outcome: Mapping[str, Tensor]
    optimizers: Sequence[dict[str, Any]]
    engine: Mapping[str, Any]
    step: int
    lead: int
    behind: int
    step_s: float
    plans: Sequence[str]
    observed: list[Any] | None
    told: list[dict[str, Any]] | None
    carried: Mapping[str, Any]
    owed: list[dict[str, Any]]

    @classmethod
    def of(cls, received: Mapping[str, Any], model: nn.Module) -> Self:
        """Reads what the source sent.

        Args:
            received: by name of attribute.
            model: whose parameters and buffers its tensors are to fit.

        Raises:
            TransportError: they do not, or something is missing; nothing of it was taken up.
        """
        wrong = [name for name, kind in _KINDS.items() if not isinstance(received.get(name, ...), kind)]
        if not wrong:
            luggage = cls(**{name: received[name] for name in _KINDS})
            wrong = luggage._misfits(_tensors(model))
        if wrong:
            raise TransportError(
                f"what another member sent to a newcomer does not fit this worker ({', '.join(wrong[:5])}): damaged, "
                "or of another version of Tightwire; nothing of it was taken up."
            )
        return luggage

    def _misfits(self, places: Mapping[str, Tensor]) -> list[str]:
        fits = {
            "plans": len(self.plans) == 2 and all(isinstance(plan, str) for plan in self.plans),
            "step": all(0 <= steps < MOST for steps in (self.step, self.lead, self.behind)),
            "step_s": 0 <= self.step_s < MOST,
            "optimizers": all(isinstance(state, dict) for state in self.optimizers),
            "owed": all(isinstance(options, dict) for options in self.owed),
        }
        strange = [
            str(name)
            for name, tensor in [*self.model.items(), *self.outcome.items()]
            if not isinstance(tensor, Tensor) or name not in places or places[name].shape != tensor.shape
        ]
        return [*strange, *(name for name, does_fit in fits.items() if not does_fit)]

    @torch.no_grad()
    def fill_model(self, model: nn.Module) -> None:
        """Makes parameters and buffers those of the source. Local."""
        for name, tensor in _tensors(model).items():
            if name in self.model:
                assign(tensor, self.model[name].to(tensor.device))

    def fill_optimizers(self, optimizers: Sequence[Optimizer], *, with_options: bool) -> None:
        """Makes what optimizers remember that of the source. Local.

        Args:
            optimizers: of this worker.
            with_options: whether options become the source's too; else they stay, for the user's loop sets them: the
                source may be a step further, and a scheduler that goes on from its rate would count that step twice.
        """
        for optimizer, kept in zip(optimizers, self.optimizers, strict=True):
            own = [dict(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(kept)
            for group, before in zip(optimizer.param_groups, own, strict=True):
                present = {key: group[key] for key in [*before, *group] if key in group}
                group.clear()
                group.update(present if with_options else before)  # options are compared in their order


_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "model": dict,
    "outcome": dict,
    "optimizers": list,
    "engine": dict,
    "step": int,
    "lead": int,
    "behind": int,
    "step_s": float,
    "plans": list,
    "observed": (list, NoneType),
    "told": (list, NoneType),
    "carried": dict,
    "owed": list,
}


def packed_model(
    model: nn.Module, outcome: Mapping[str, Tensor], left: frozenset[str] | set[str]
) -> dict[str, Tensor]:
    """Returns the model's tensors by name, without copies.

    Args:
        model: of the source.
        outcome: is given beside them. What is equal, as after a meeting, is the same tensor, and is sent once.
        left: names that belong to each worker alone.
    """
    tensors = {name: tensor.detach() for name, tensor in _tensors(model).items() if name not in left}
    return {name: _same(outcome.get(name), tensor) for name, tensor in tensors.items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _same(known: Tensor | None, tensor: Tensor) -> Tensor:
    """Returns the known tensor if it is as the other is, to the bit; else the other."""
    is_alike = known is not None and known.dtype == tensor.dtype and known.device == tensor.device
    return known if known is not None and is_alike and torch.equal(known, tensor) else tensor
