"""Parameter servers: who owns which part of the model, and the program of the synchronous kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, final

from tightwire.answers import Answers, Refusal, text_with
from tightwire.architecture.allreduce.program import Program, Transfer
from tightwire.architecture.architecture import Architecture, Setting
from tightwire.compression.codec import Codec
from tightwire.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Who does what, by rank.

    Attributes:
        workers: ranks that train, ascending.
        owners: ranks that own a part of the model, ascending.
        weights: how much of the model each owner should have, in any unit.
    """

    workers: tuple[int, ...]
    owners: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def dedicated(self) -> tuple[int, ...]:
        """Ranks that own a part and do not train."""
        return tuple(rank for rank in self.owners if rank not in self.workers)

    def share_out(self, numels: Sequence[int]) -> tuple[int, ...]:
        """Returns the owner of each of several tensors: the largest first, each to who has the least for its weight.

        Whole tensors, so that optimizers which look at one as a whole (LARS, LAMB, Adafactor) work on a server too.

        >>> Roles(workers=(0, 1), owners=(0, 1), weights=(1.0, 1.0)).share_out([5, 3, 3])
        (0, 1, 1)

        Raises:
            PlanError: fewer tensors than owners.
        """
        if len(numels) < len(self.owners):
            raise PlanError(
                f"{len(self.owners)} ranks are to own shards of a model with {len(numels)} trained parameters: give at "
                f"most ps:shards={len(numels)}, for a shard holds whole parameters."
            )
        load = dict.fromkeys(self.owners, 0)
        weight = dict(zip(self.owners, self.weights, strict=True))
        owner_of: dict[int, int] = {}
        for tensor in sorted(range(len(numels)), key=lambda i: -numels[i]):
            # One element more than it has, so that empty tensors spread as well.
            owner = min(load, key=lambda rank: (load[rank] + numels[tensor] + 1) / weight[rank])
            owner_of[tensor] = owner
            load[owner] += numels[tensor] + 1
        return tuple(owner_of[tensor] for tensor in range(len(numels)))


@final
@dataclass(frozen=True)
class ParameterServer(Architecture):
    """Parts of the model have owners: workers send them gradients and get values back.

    Under `bsp` with colocated shards a step is a program: every worker sends each shard's gradient to its owner and
    gets the mean back, 2(n−1)/n·M bytes each way for M bytes over n shards, and every worker steps by itself. In all
    other cases owners are servers: they step, with the user's own optimizer, and workers get the new parameters.

    Dedicated servers take max(M/B, nM/(kB)) for n workers and k servers of rate B, the BytePS mix
    2n(n−1)M/((n²+kn−2k)B).

    Attributes:
        shards: how many workers own a shard besides training; 0 stands for all.
        servers: how many ranks, the last ones, are servers and do not train; `run.is_server` tells them.
        mix: whether workers own shards beside dedicated servers, each in the share that keeps all lines equally busy.
        hierarchical: whether the workers of a node add up inside it first, so that one message per node and shard
            goes to the owner, and one comes back.
        node: for that, how many consecutive ranks are a node; 0: as many as the launcher says (LOCAL_WORLD_SIZE).
        on_device: whether servers keep their shards (parameters, sums, the optimizer's state) on their rank's device,
            beside the model, and step there; by default shards of a model on a GPU are in host memory. Messages are
            encoded and decoded on the device then, and only they cross PCIe. It takes device memory: on each worker
            three times the gradients and a push; on an owner three times its shard, for each worker a push and a pull,
            and under a codec or dc the shard once more; and the optimizer's state. A server's work takes turns with its
            own worker's compute. Where the model is in host memory it changes nothing.
    """

    name: ClassVar[str] = "ps"
    title: ClassVar[str] = "parameter server: shards of the model have owners"
    paper: ClassVar[str] = (
        "Li et al. 2014, Scaling distributed machine learning with the parameter server, OSDI; "
        "Jiang et al. 2020, BytePS, OSDI"
    )
    promise: ClassVar[str] = (
        "As exact as all-reduce in rounds, at as many bytes where every worker is a server (Jiang et al. "
        "2020)."
    )
    seen: ClassVar[str] = "Seen: bytes are counted."
    has_server: ClassVar[bool] = True

    shards: int = field(default=0, kw_only=True)
    servers: int = field(default=0, kw_only=True)
    mix: bool = field(default=False, kw_only=True)
    hierarchical: bool = field(default=False, kw_only=True)
    node: int = field(default=0, kw_only=True)
    on_device: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.shards < 0 or self.servers < 0:
            raise PlanError(f"{self} has a negative number of owners; 0 shards stands for one per worker.")
        if self.shards and self.servers:
            raise PlanError(
                f"{self} gives shards to workers and to servers, and not in which share; for the best one write "
                f"ps:servers={self.servers},mix=true, else one of ps:shards={self.shards}, ps:servers={self.servers}."
            )
        if self.mix and not self.servers:
            raise PlanError(f"{self} mixes workers' shards with servers that it has none of; give servers=1.")
        if self.node < 0 or (self.node and not self.hierarchical):
            raise PlanError(
                f"{self} has nodes of {self.node}; write ps:hierarchical=true,node=2 for nodes of 2 ranks."
            )

    @property
    def is_levelled(self) -> bool:
        """Whether it must know who sits with whom."""
        return self.hierarchical and not self.node

    @property
    def asynchronous(self) -> bool:
        """Servers answer each worker by itself."""
        return True

    @property
    def engine(self) -> str:
        """Dedicated servers step themselves, whatever the policy."""
        return "server" if self.servers else ""

    def fitted(self, num_ranks: int) -> ParameterServer:  # noqa: D102
        return replace(self, shards=min(self.shards, num_ranks))

    def roles(self, num_ranks: int) -> Roles:
        """Returns who does what among `num_ranks` ranks.

        Raises:
            PlanError: more owners than there can be, with the most that there can.
        """
        if self.servers >= num_ranks:
            raise PlanError(
                f"{self} makes {self.servers} of {num_ranks} processes servers, and none is left to train: start more, "
                f"or give at most ps:servers={num_ranks - 1}."
            )
        if self.shards > num_ranks:
            raise PlanError(
                f"{self} has more shards than the {num_ranks} workers that could own one: give at most "
                f"ps:shards={num_ranks}."
            )
        num_workers = num_ranks - self.servers
        return self.among(range(num_workers), range(num_workers, num_ranks))

    def among(self, workers: Sequence[int], dedicated: Sequence[int], *, most: int | None = None) -> Roles:
        """Returns who owns what among some workers and those servers that there are; without any, workers own all.

        Args:
            workers: ranks that train, ascending.
            dedicated: ranks that do not, ascending.
            most: how many owners there can be.
        """
        if not dedicated:
            owners, weights = tuple(workers[: self.shards or None]), (1.0,) * len(workers)
        elif self.mix and len(workers) > len(dedicated):
            owners, weights = (*workers, *dedicated), mixed_weights(len(workers), len(dedicated))
        else:
            owners, weights = tuple(dedicated), (1.0,) * len(dedicated)
        owners = owners[:most]
        return Roles(workers=tuple(workers), owners=owners, weights=weights[: len(owners)])

    def program(self, codec: Codec, num_ranks: int) -> Program:
        """Returns the synchronous program: to the owners, and back.

        Raises:
            PlanError: dedicated servers, which follow no program, or more shards than ranks.
        """
        if self.servers:
            raise PlanError(
                f"{self} answers workers as they come, by no program; ps without servers has one."
            )
        return self._among(num_ranks, self.node)

    def program_for(self, codec: Codec, numel: int, itemsize: int, setting: Setting) -> Program:
        """Returns the synchronous program, by the launcher's nodes where it goes by nodes and was told none.

        Raises:
            PlanError: as `program`, or nobody told who shares a node.
        """
        if not self.is_levelled or setting.num_ranks == 1:
            return self.program(codec, setting.num_ranks)
        return self._among(setting.num_ranks, setting.workers_per_node)

    def _among(self, num_ranks: int, per_node: int) -> Program:
        shards = len(self.roles(num_ranks).owners)
        if not self.hierarchical or num_ranks == 1:
            return shard_program(num_ranks, shards)
        if per_node == 0:
            raise PlanError(
                f"{self} must know which workers share a node, and no launcher told (LOCAL_WORLD_SIZE): start with "
                "torchrun, or write their number, such as ps:hierarchical=true,node=2."
            )
        return node_program(num_ranks, shards, per_node)

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses what no server can do: messages without a sum in the program, and rounds of parameters."""
        served = plan.sync.is_served
        if self.servers and not served and plan.sync.name != "bsp":
            return Refusal(
                reason=f"{self} cannot work under {plan.sync}: dedicated servers take gradients and step themselves.",
                nearest=(
                    text_with(plan, architecture="ps"),
                    text_with(plan, sync="bsp"),
                ),
            )
        if self.hierarchical and (served or self.servers):
            return Refusal(
                reason=f"{self} adds up what a node's workers send in the same step, and under {plan.sync} with "
                f"{'dedicated servers' if self.servers else 'servers'} each is answered by itself.",
                nearest=(
                    text_with(plan, sync="bsp", architecture=f"{self.name}:hierarchical=true"),
                    text_with(plan, architecture=str(replace(self, hierarchical=False, node=0))),
                ),
            )
        if self.on_device and not served and not self.servers:
            return Refusal(
                reason=f"{self} has no shards to keep under {plan.sync}: owners add up what workers send, on the "
                "device that it is on, and every worker steps by itself.",
                nearest=(
                    text_with(plan, architecture=str(replace(self, on_device=False))),
                    text_with(plan, sync="ssp:0"),
                ),
            )
        codec = plan.compression[0]
        if not served and not self.servers and isinstance(codec, Codec) and codec.combine == "none":
            return Refusal(
                reason=f"{codec} cannot travel by {self} under {plan.sync}: owners add messages, and its messages have "
                "no elementwise sum.",
                nearest=(text_with(plan, sync="ssp:0"), text_with(plan, architecture="allreduce")),
            )
        stages = [stage for stage in plan.compression[1:] if stage.name in ("ef21", "diana")]
        if (served or self.servers) and stages:
            left = "+".join(str(stage) for stage in plan.compression if stage not in stages)
            return Refusal(
                reason=f"{stages[0]} cannot work behind a server: it follows the mean of what all workers sent in a "
                "round, and a server returns parameters.",
                nearest=(text_with(plan, compression=left),),
            )
        return None


def mixed_weights(num_workers: int, num_servers: int) -> tuple[float, ...]:
    """Returns the share of each worker, then of each server, that keeps all lines equally busy (BytePS, section 4.1).

    Of n workers and k servers, n > k, a worker owns (n−k)/(n²+kn−2k) of the model, a server 2(n−1)/(n²+kn−2k).

    >>> sum(mixed_weights(4, 2)), mixed_weights(4, 2)[-1]
    (1.0, 0.3)
    """
    n, k = num_workers, num_servers
    whole = n * n + k * n - 2 * k
    return ((n - k) / whole,) * n + (2 * (n - 1) / whole,) * k


@lru_cache(maxsize=32)
def shard_program(n: int, shards: int) -> Program:
    """Sends every rank's contribution to each shard's owner, and the sums back.

    Chunk c belongs to rank c < shards. In step s rank r sends to rank r + s + 1, so that no two meet at one owner:
    2(n−1)α + 2(n−1)/k·Mβ + (n−1)/k·Mγ for k shards, which is the ring's at k = n.
    """
    to_owners = [
        Transfer(step, rank, (rank + step + 1) % n, (rank + step + 1) % n, "reduce")
        for step in range(n - 1)
        for rank in range(n)
        if (rank + step + 1) % n < shards
    ]
    back = [
        Transfer(n - 1 + step, owner, (owner + step + 1) % n, owner, "copy")
        for step in range(n - 1)
        for owner in range(shards)
    ]
    return Program("ps", n, shards, (*to_owners, *back))


@lru_cache(maxsize=32)
def node_program(n: int, shards: int, per_node: int) -> Program:
    """Is `shard_program` by levels: nodes add up inside, one rank of each sends on to the owner and hands out the sum.

    For every shard a node has a delegate: the owner where it is one of them, else the rank as far into the node as the
    shard's number is, counted around. Of M bytes over n shards in n/m nodes of m, a node sends 2(1 − m/n)·M to others
    instead of 2(1 − m/n)·mM.

    Args:
        n: ranks.
        shards: of which rank c < shards owns the c-th.
        per_node: m, consecutive ranks of a node; the last node may have fewer.
    """
    nodes = [range(first, min(first + per_node, n)) for first in range(0, n, per_node)]

    def delegate(node: range, shard: int) -> int:
        return shard if shard in node else node[shard % len(node)]

    inside = [
        Transfer((to - rank) % len(node) - 1, rank, to, shard, "reduce")
        for node in nodes
        for shard in range(shards)
        for to in (delegate(node, shard),)
        for rank in node
        if rank != to
    ]
    at = len(nodes[0]) - 1
    across = [
        Transfer(
            at + (shard // per_node - number) % len(nodes) - 1, delegate(node, shard), shard, shard, "reduce"
        )
        for number, node in enumerate(nodes)
        for shard in range(shards)
        if shard not in node
    ]
    last = 2 * (at + len(nodes) - 1) - 1
    there = sorted((*inside, *across), key=lambda t: t.step)
    # The way back is the way there: sums go out where contributions came in, the last step first.
    back = [replace(t, step=last - t.step, src=t.dst, dst=t.src, op="copy") for t in reversed(there)]
    return Program("ps", n, shards, (*there, *back))
