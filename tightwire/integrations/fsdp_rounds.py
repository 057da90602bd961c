"""Local methods between groups of FSDP2: each group trains alone, and all agree every so many steps (DiLoCo across)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, final

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from tightwire.errors import AttachError
from tightwire.files import own_version
from tightwire.integrations._shards import (
    connect_across,
    connect_inside,
    fsdp_units,
    local_part,
    mesh_of,
    sharding_groups,
)
from tightwire.plan import Phases, Plan
from tightwire.runtime.agreement import copy_from_first, model_facts, require_agreement, wire_facts
from tightwire.runtime.context import RunContext
from tightwire.runtime.membership import Membership
from tightwire.runtime.outer import MakeOuter
from tightwire.runtime.run import Run
from tightwire.runtime.step import Optimizers, plain_optimizer
from tightwire.runtime.trace import Tracer
from tightwire.transport import Counting, Transport


@final
class FSDPRounds:
    """Has groups of FSDP2 agree on their parameters every so many steps; made by `fsdp_hook`.

    A context, as a `Run` is: leaving it calls `finish`, unless an exception is on its way. A round that is not finite
    in one shard is dropped in all.

    Attributes:
        plan: in force.
        run: of this rank and those with the same shard in the other groups, for `report()`, `report_loss` and the like.
        replicas: how many groups agree with one another.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        plan: Plan,
        transport: Transport,
        *,
        seed: int = 0,
        outer: MakeOuter | None = None,
    ) -> None:
        self.plan, self._world = plan, transport
        self._units = fsdp_units(model)
        groups = sharding_groups(transport, mesh_of(model, self._units))
        shards = _shards_of(model)
        held = [*shards.named_parameters(), *shards.named_buffers()]
        if on_meta := [name for name, tensor in held if tensor.is_meta]:
            raise AttachError(
                f"{plan.sync} begins from what all groups have alike, and {on_meta[0]} is on the meta device, where it "
                "has no values; call model.to_empty(device=...) and load or seed it, before tw.fsdp_hook."
            )
        listed = Optimizers(
            [plain_optimizer(member) for member in optimizers],
            stands_for={shard: shard.whole for shard in shards.parameters() if isinstance(shard, _Shard)},
            shard_of=local_part,
        )
        settings = {
            "version of tightwire": own_version(),
            "plan": plan,
            "seed": seed,
            "optimizer": " and ".join(type(member).__name__ for member in listed.members),
            **listed.hyperparameters(),
        }
        require_agreement(transport, settings | wire_facts([plan.compression]))
        across, self._inside = connect_across(transport, groups), connect_inside(transport, groups)
        require_agreement(across, model_facts(shards))
        self.replicas, self._num_shards = across.size, self._inside.size
        context = RunContext(
            transport=Counting(across),
            routing=(),
            tracer=Tracer(),
            seed=seed,
            gradient_scale=lambda: 1.0,
            model=shards,
            optimizers=listed,
            membership=Membership(tuple(range(across.size))),
            outer=outer,
            agree=self._agree,
        )
        copy_from_first(across, [*shards.parameters(), *shards.buffers()])
        self.run = Run(shards, Phases((plan,)), context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.__exit__(kind, error, trace)

    @property
    def rounds(self) -> int:
        """Rounds begun here so far."""
        return self.run.report().rounds

    @property
    def sent_bytes(self) -> int:
        """Payload bytes that this rank sent between groups so far, counted."""
        return self.run.report().sent_bytes

    @property
    def planned_bytes(self) -> int:
        """Payload bytes that this rank sends in the rounds begun here, by formula and agreed lengths."""
        return self.run.report().planned_bytes

    def finish(self) -> None:
        """Completes what is under way and makes all groups' parameters equal. Every rank; blocks."""
        self.run.finish()

    def close(self) -> None:
        """Takes the hooks out; the model and the optimizer stay usable. Local."""
        self.run.close()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is the one to be evaluated, equal in all groups; see `Run.evaluating`. Every rank; blocks.

        FSDP may keep the parameters of the last forward pass whole: they are gathered anew inside, and afterwards.
        """
        with self.run.evaluating():
            self._reshard()
            try:
                yield
            finally:
                self._reshard()

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint, by parameter name; tensors are copies of its shards.

        Between rounds groups have parameters and optimizer states of their own: save each group's.
        """
        return {
            "version": 1,
            "rank": self._world.rank,
            "workers": self._world.size,
            "shards": self._num_shards,
            "run": self.run.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` returned on this rank, once the model's and the optimizer's state is loaded.

        With another number of groups only steps and rounds are counted on, from the parameters of the first group.

        Raises:
            AttachError: a checkpoint of another version or rank, or of a model cut into another number of shards.
        """
        told = {key: state.get(key) for key in ("version", "shards")}
        mine = {"version": 1, "shards": self._num_shards}
        if state.get("workers") == self._world.size:
            told["rank"], mine["rank"] = state.get("rank"), self._world.rank
        if told != mine:
            raise AttachError(
                f"the checkpoint is of {_words(told)}, and this is {_words(mine)}: every rank loads its own, in groups "
                "of as many ranks. To begin anew from the model and the optimizer, load those alone."
            )
        self.run.load_state_dict(state["run"])

    def _agree(self, finite: bool) -> bool:
        return all(other == b"\1" for other in self._inside.exchange(b"\1" if finite else b"\0"))

    def _reshard(self) -> None:
        for unit in self._units:
            first: Any = unit.modules[0]
            first.reshard()


class _Shard(Parameter):
    """This rank's part of a DTensor parameter, as a plain one: the same memory, and the same gradient.

    Attributes:
        whole: the DTensor, as the model and the optimizer hold it.
    """

    whole: Parameter

    @property
    def grad(self) -> Tensor | None:
        """The gradient's part; None drops the whole gradient."""
        self._follow()
        return None if self.whole.grad is None else local_part(self.whole.grad)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        assert value is None, "engines of local methods only drop gradients"
        self.whole.grad = None

    def _follow(self) -> None:
        """Takes up memory that FSDP or a `load_state_dict(assign=True)` has put in the place of the old."""
        local = local_part(self.whole)
        if local.data_ptr() != self.data_ptr():
            self.data = local


def _shards_of(model: nn.Module) -> nn.Module:
    """Returns a module of the model's names, with this rank's shards for parameters, and its buffers."""
    root = nn.Module()
    for name, parameter in model.named_parameters():
        shard = _Shard(local_part(parameter), parameter.requires_grad)
        shard.whole = parameter
        place, last = _place(root, name)
        place.register_parameter(last, shard)
    for name, buffer in model.named_buffers():
        place, last = _place(root, name)
        place.register_buffer(last, buffer)
    return root


def _place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the module that is to hold a name, and the name in it."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        child = root._modules[part]
        assert child is not None
        root = child
    return root, last


def _words(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())
