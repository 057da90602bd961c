"""What members of an elastic job have of each shard when a new world begins, and what its new servers are given.

The newest value of a parameter is its server's. Where that server died it is what some worker heard from it last, and
what the optimizer remembers comes from the replica that another worker keeps, which is some updates old.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from tightwire.architecture import ParameterServer
from tightwire.architecture.server.messages import pack_state, unpack_state
from tightwire.architecture.server.parameter_server import Roles
from tightwire.errors import TransportError
from tightwire.runtime.membership import Membership
from tightwire.runtime.reading import MOST, readable, room_for
from tightwire.transport import Transport

PARCEL_TAG = 1
PIECE_BYTES = 4 << 20
UNDECIDED, WORKER, SERVER = range(3)
Kind = Literal["shard", "heard", "replica"]


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What one member has of some parameters.

    Attributes:
        kind: a shard that it serves; the values that it last heard from a server; or a replica of what a server's
            optimizer remembers.
        names: of the parameters.
        updates: made by their server then.
        clock: of the last round that is in them.
        values: by name; of a replica none.
        optimizer: what is remembered, by name; of heard values nothing.
    """

    kind: Kind
    names: tuple[str, ...]
    updates: int
    clock: int
    values: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A member, `rank`, and what it holds, its `number`-th; see `Holding` for the rest."""

    rank: int
    number: int
    kind: str
    updates: int
    clock: int
    remembers: bool


@dataclass(frozen=True)
class Deal:
    """Whose holding counts, by name: the same on every member.

    Attributes:
        values: who gives the value.
        optimizer: who gives what the optimizer remembers; a name is missing where nobody has it.
    """

    values: Mapping[str, Holder]
    optimizer: Mapping[str, Holder]

    @property
    def clock(self) -> int:
        """The last round that is in any value."""
        return max((claim.clock for claim in self.values.values()), default=0)

    def behind(self, names: Iterable[str]) -> frozenset[str]:
        """Returns the names of those in which the last round is not; nobody has heard of a server's first round."""
        last = self.clock
        clocks = {name: claim.clock for name, claim in self.values.items()}
        return frozenset(name for name in names if clocks.get(name, 0) < last)

    def losses(self) -> tuple[int, int]:
        """Returns of how many parameters the optimizer forgets something, and of at most how many updates."""
        lost = []
        for name, claim in self.values.items():
            kept = self.optimizer.get(name)
            if claim.kind != "shard" and (kept is None or kept.remembers or kept.updates == 0):
                lost.append(claim.updates - (kept.updates if kept is not None else 0))
        lost = [updates for updates in lost if updates > 0]
        return len(lost), max(lost, default=0)

    @classmethod
    def over(cls, claims: Iterable[tuple[Holder, Sequence[str]]]) -> Deal:
        """Chooses the newest: a server's before what was heard from it.

        >>> new = Holder(rank=1, number=0, kind="heard", updates=7, clock=7, remembers=False)
        >>> old = Holder(rank=2, number=0, kind="replica", updates=4, clock=4, remembers=True)
        >>> deal = Deal.over([(new, ["w"]), (old, ["w"])])
        >>> deal.values["w"].rank, deal.optimizer["w"].rank, deal.losses()
        (1, 2, (1, 3))
        """
        values, optimizer = dict[str, Holder](), dict[str, Holder]()
        for claim, names in claims:
            for name in names:
                for kinds, best in ((("heard", "shard"), values), (("replica", "shard"), optimizer)):
                    if claim.kind in kinds and (name not in best or _order(claim) > _order(best[name])):
                        best[name] = claim
        return cls(values, optimizer)


def _order(claim: Holder) -> tuple[int, bool, int]:
    return claim.updates, claim.kind == "shard", -claim.rank


def make_deal(transport: Transport, holdings: Sequence[Holding], names: Collection[str]) -> Deal:
    """Tells all members what this one has, and returns whose counts. Contract: every member; blocks.

    Args:
        transport: between all members.
        holdings: of this one.
        names: of all parameters.

    Raises:
        MismatchError: a member told what cannot be read; on every member alike.
    """
    told = json.dumps([[h.kind, h.updates, h.clock, bool(h.optimizer), h.names] for h in holdings])
    return Deal.over(
        (
            Holder(rank=rank, number=number, kind=kind, updates=updates, clock=clock, remembers=remembers),
            held,
        )
        for rank, claims in enumerate(
            readable(transport.exchange(told.encode()), lambda data: claims_of(data, names))
        )
        for number, (kind, updates, clock, remembers, held) in enumerate(claims)
    )


Claim = tuple[str, int, int, bool, list[str]]


def claims_of(data: bytes, names: Collection[str]) -> list[Claim] | None:
    """Reads what a member says that it holds of some parameters; None for whatever is no such thing."""
    with suppress(ValueError, TypeError, RecursionError):
        claims = json.loads(data)
        for kind, updates, clock, remembers, held in claims:
            counts = all(type(number) is int and 0 <= number < MOST for number in (updates, clock))
            known = isinstance(held, list) and all(isinstance(n, str) and n in names for n in held)
            if kind not in get_args(Kind) or not (counts and known and isinstance(remembers, bool)):
                return None
        return [(kind, updates, clock, remembers, held) for kind, updates, clock, remembers, held in claims]
    return None


def sizes_of(data: bytes, ranks: int) -> dict[int, int] | None:
    """Reads to which of so many ranks a member sends how many bytes; None for whatever is no such thing."""
    with suppress(ValueError, AttributeError, RecursionError):
        sizes = {int(rank): size for rank, size in json.loads(data).items()}
        if all(0 <= rank < ranks and type(n) is int and 0 <= n < MOST for rank, n in sizes.items()):
            return sizes
    return None


def parcel_of(packed: Tensor, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Reads values and what the optimizer remembers, by name.

    Raises:
        TransportError: it is nothing like it; nothing was taken up.
    """
    parcel = unpack_state(packed)
    is_whole = parcel.keys() == {"values", "optimizer"} and all(
        isinstance(part, dict) and part.keys() <= set(names) for part in parcel.values()
    )
    if (
        not is_whole
        or not all(isinstance(value, Tensor) for value in parcel["values"].values())
        or not all(isinstance(kept, dict) for kept in parcel["optimizer"].values())
    ):
        raise TransportError(
            "what another member sent of its shards has not the parameters of this model: damaged, or of another "
            "version of Tightwire; nothing of it was taken up."
        )
    return parcel


def hand_round(
    transport: Transport, holdings: Sequence[Holding], deal: Deal, owner_of: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Mapping[str, Any]]]:
    """Gives every new server what counts of its parameters; returns the values and the optimizer's memory of this one.

    Contract: every member; blocks.
    """
    rank = transport.rank
    parcels: dict[int, dict[str, Any]] = {}
    givers: set[int] = set()
    for what, claims in (("values", deal.values), ("optimizer", deal.optimizer)):
        for name, claim in claims.items():
            owner = owner_of[name]
            if claim.rank == rank:
                holding = holdings[claim.number]
                kept = (holding.values if what == "values" else holding.optimizer).get(name)
                if kept is not None:
                    parcels.setdefault(owner, {"values": {}, "optimizer": {}})[what][name] = kept
            elif owner == rank:
                givers.add(claim.rank)
    own = parcels.pop(rank, {"values": {}, "optimizer": {}})
    packed = {owner: pack_state(parcel) for owner, parcel in parcels.items()}
    told = readable(
        transport.exchange(json.dumps({owner: p.numel() for owner, p in packed.items()}).encode()),
        lambda data: sizes_of(data, transport.size),
    )
    sizes = {giver: told[giver].get(rank, 0) for giver in sorted(givers)}
    rooms = {giver: room_for(size, giver) for giver, size in sizes.items() if size}
    works = [
        transport.irecv(piece, giver, PARCEL_TAG)
        for giver, room in rooms.items()
        for piece in room.split(PIECE_BYTES)
    ]
    works += [
        transport.isend(piece, owner, PARCEL_TAG)
        for owner, parcel in packed.items()
        for piece in parcel.split(PIECE_BYTES)
    ]
    for work in works:
        work.wait()
    received = [own, *(parcel_of(room, owner_of) for room in rooms.values())]
    return (
        {name: value for parcel in received for name, value in parcel["values"].items()},
        {name: kept for parcel in received for name, kept in parcel["optimizer"].items()},
    )


def code_of(data: bytes) -> int | None:
    """Reads whether a member is a worker or a server; None for whatever is no such thing."""
    return data[0] if len(data) == 1 and data[0] in (UNDECIDED, WORKER, SERVER) else None


def elect(
    architecture: ParameterServer, transport: Transport, membership: Membership, num_tensors: int
) -> Roles:
    """Returns who serves among members that come and go, and notes whether this one does, for good.

    A worker never becomes a dedicated server, for it is in the middle of its loop: while fewer are there than the plan
    asks for, a newcomer becomes one, and while none is there workers own all shards.

    Contract: every member; blocks.
    """
    code = UNDECIDED if membership.serves is None else SERVER if membership.serves else WORKER
    codes = readable(transport.exchange(bytes([code])), code_of)
    servers = [rank for rank, told in enumerate(codes) if told == SERVER]
    for rank in reversed(range(len(codes))):
        if codes[rank] == UNDECIDED and len(servers) < architecture.servers and len(servers) + 1 < len(codes):
            servers.append(rank)
    membership.serves = transport.rank in servers
    workers = [rank for rank in range(len(codes)) if rank not in servers]
    return architecture.among(workers, sorted(servers), most=num_tensors)
