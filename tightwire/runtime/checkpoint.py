"""One checkpoint for all ranks: every rank's part brought to rank 0, and taken up by any number of workers."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightwire.errors import MismatchError
from tightwire.runtime.step import Optimizers
from tightwire.transport import Transport
from tightwire.transport.blame import name_ranks

TAG = 0


def gather(transport: Transport, part: Mapping[str, Any], *, to: int = 0) -> list[dict[str, Any]]:
    """Returns every rank's part on one, by rank, and nothing on the others.

    Args:
        transport: between all ranks.
        part: this rank's: tensors on the host, numbers, texts, lists and dicts of them.
        to: the rank that holds all of them.

    Contract: every rank, with nothing under way; blocks; sends the part to that one.
    """
    file = io.BytesIO()
    torch.save(dict(part), file)
    mine = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
    told = transport.exchange(len(mine).to_bytes(8, "little"))
    if transport.rank != to:
        transport.isend(mine, to, TAG).wait()
        return []
    parts = [torch.empty(int.from_bytes(size, "little"), dtype=torch.uint8) for size in told]
    parts[to] = mine
    for rank, room in enumerate(parts):
        if rank != to:
            transport.irecv(room, rank, TAG).wait()
    return [torch.load(io.BytesIO(other.numpy().data), weights_only=True) for other in parts]


def on_host(state: Any) -> Any:
    """Returns a state with all of its tensors in host memory: a device of another rank is not there to load them to."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, Mapping):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(on_host, state))
    return state


def own_tensors(
    model: nn.Module, optimizers: Optimizers, *, agrees: bool, left: Collection[str]
) -> dict[str, Any]:
    """Returns what each rank has for itself: all where replicas differ, else buffers and what is left to it.

    Args:
        model: the user's.
        optimizers: the user's.
        agrees: whether the plan keeps parameters equal.
        left: names of what is each rank's own in any case.
    """
    own = {*dict(model.named_buffers()), *left}
    state = model.state_dict()
    found: dict[str, Any] = {"model": {n: t for n, t in state.items() if not agrees or n in own}}
    if not agrees or any(name in left for name, _ in model.named_parameters()):
        found["optimizers"] = [member.state_dict() for member in optimizers.members]
    return found


def put_back(model: nn.Module, optimizers: Optimizers, part: Mapping[str, Any]) -> None:
    """Loads what `own_tensors` returned."""
    model.load_state_dict(part.get("model", {}), strict=False)
    for member, state in zip(optimizers.members, part.get("optimizers", ()), strict=False):
        member.load_state_dict(state)


def blended(parts: Sequence[Mapping[str, Any]], rank: int, left: Collection[str]) -> dict[str, Any]:
    """Returns what a rank takes up of the parts of another number of ranks: their mean.

    What is left to each rank has no mean, and becomes that of one of the old ranks.

    Args:
        parts: of all old ranks, by rank.
        rank: among the new ones.
        left: names of what is each rank's own in any case.
    """
    mine = dict(parts[rank % len(parts)])
    model: Mapping[str, Any] = mine.get("model", {})
    kept = {name: tensor for name, tensor in model.items() if name in left}
    mine["model"] = merged([part.get("model", {}) for part in parts]) | kept
    if "optimizers" in mine and not kept:
        mine["optimizers"] = merged([part["optimizers"] for part in parts])
    return mine


def require_alike(what: str, told: Mapping[int, str]) -> None:
    """Makes sure that parts of a checkpoint were saved together.

    Args:
        what: has which, as in "ranks load parts".
        told: by rank, when its part was saved, in words that are alike for all that were saved together.

    Raises:
        MismatchError: they were not; it says who has what.
    """
    if len(set(told.values())) == 1:
        return
    who = {text: [rank for rank, other in told.items() if other == text] for text in told.values()}
    lines = "; ".join(f"{name_ranks(ranks)} {text}" for text, ranks in who.items())
    raise MismatchError(
        f"{what} of different checkpoints: {lines}. A save was cut short, or several went to one folder: have all "
        "ranks load from one that was completed, and save each to a folder of its own."
    )


def merged(states: Sequence[Any]) -> Any:
    """Returns one state for what several ranks remembered.

    What is equal stays as it is. Of floating-point tensors that differ (leftovers, momenta, parameters) it is the
    mean: what the mean of all workers is owed, stays owed, whatever their number. Of all else it is the first rank's.
    """
    first = states[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for state in states for key in state)
        return {key: merged([state[key] for state in states if key in state]) for key in keys}
    if isinstance(first, list | tuple) and len({len(state) for state in states}) == 1:
        return [merged(items) for items in zip(*states, strict=True)]
    if not isinstance(first, Tensor) or not first.is_floating_point() or _are_equal(states):
        return first
    mean = torch.stack([state.double() for state in states]).mean(0)
    return mean.to(first.dtype)


def _are_equal(states: Sequence[Any]) -> bool:
    return all(torch.equal(states[0], other) for other in states[1:])
