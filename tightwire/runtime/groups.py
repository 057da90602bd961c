"""Groups of ranks that share parameters which others have not, such as the experts of a layer: who, and which."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn import Parameter

from tightwire.errors import AttachError, MismatchError
from tightwire.transport import Counting, Transport
from tightwire.transport.torch_distributed import ranks_of

# By a pattern over parameter names or a module of the model: the ranks that share its parameters with this one, or
# their process group.
Groups = Mapping[str | nn.Module, object]


@dataclass(frozen=True)
class Sharing:
    """Parameters that this rank shares with some others.

    Attributes:
        transport: among those ranks.
        names: of the parameters.
    """

    transport: Counting
    names: tuple[str, ...]


def resolve(model: nn.Module, groups: Groups, transport: Transport) -> dict[str, tuple[int, ...]]:
    """Returns the ranks that share a parameter with this one, by its name, in ascending order.

    Raises:
        AttachError: a pattern that matches nothing, a module of another model, or ranks that are none.
    """
    found: dict[str, tuple[int, ...]] = {}
    for key, given in groups.items():
        ranks = tuple(sorted(ranks_of(given)))
        if transport.rank not in ranks or not set(ranks) <= set(range(transport.size)):
            raise AttachError(
                f"groups: {_called(key)} is to be shared by ranks {list(ranks)}; name ranks of 0 to "
                f"{transport.size - 1}, this one (rank {transport.rank}) among them."
            )
        found |= dict.fromkeys(_names(model, key), ranks)
    return found


def _names(model: nn.Module, key: str | nn.Module) -> list[str]:
    if isinstance(key, str):
        names = fnmatch.filter(dict(model.named_parameters()), key)
    else:
        ours = {id(p) for p in key.parameters()}
        names = [name for name, p in model.named_parameters() if id(p) in ours]
    if not names:
        raise AttachError(f"groups: {_called(key)} has no parameter of the model.")
    return names


def _called(key: str | nn.Module) -> str:
    return repr(key) if isinstance(key, str) else type(key).__name__


def form(transport: Counting, shared: Mapping[str, tuple[int, ...]]) -> tuple[Sharing, ...]:
    """Connects the ranks that share parameters. Every rank, with what `resolve` returned; blocks.

    Raises:
        MismatchError: ranks that do not agree who shares what with whom, on every rank alike.
    """
    told = [json.loads(other) for other in transport.exchange(json.dumps(shared).encode())]
    for rank, theirs in enumerate(told):
        for name, ranks in theirs.items():
            if odd := [other for other in ranks if told[other].get(name) != ranks]:
                raise MismatchError(
                    f"groups: rank {rank} shares {name} with ranks {ranks}, and rank {odd[0]} with "
                    f"{told[odd[0]].get(name, 'nobody')}; give all ranks of a group the same list."
                )
    everywhere = sorted({tuple(ranks) for theirs in told for ranks in theirs.values() if len(ranks) > 1})
    formed = []
    for ranks in everywhere:
        group = transport.group(ranks)
        if group is not None:
            assert isinstance(group, Counting)
            formed.append(Sharing(group, tuple(name for name in shared if shared[name] == ranks)))
    return tuple(formed)


def trained(sharing: Sharing, model: nn.Module) -> dict[str, Parameter]:
    """Returns the shared parameters that are trained, by name."""
    return {n: p for n, p in model.named_parameters() if n in sharing.names and p.requires_grad}


def require_alone(groups: Sequence[Sharing], what: str) -> None:
    """Refuses what is not made for groups.

    Raises:
        AttachError: there are some.
    """
    if groups:
        raise AttachError(
            "parameters that are shared by groups of ranks (groups=…) are averaged by bsp over all-reduce and by "
            f"local methods whose workers all meet at the same steps, and not under {what}; choose bsp or local:8."
        )
