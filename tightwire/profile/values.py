"""What a model costs on a worker: measured facts about compute and codecs, as a value and as a file."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from tightwire import files
from tightwire.answers import Sender
from tightwire.cluster import require_range
from tightwire.errors import FileError
from tightwire.profile.cost import MAX_SECONDS, CodecCost
from tightwire.profile.relatives import AssumedCost, from_relatives

MAX_SAMPLES = 1e9
MAX_CONTENTION = 1000.0
# For what was not measured: a pass over float32 on one ordinary core.
PRIOR_PASS_S_PER_ELEMENT = 5e-10


@dataclass(frozen=True, kw_only=True)
class ParameterProfile:
    """One parameter that trains.

    Attributes:
        name: as in `model.named_parameters()`.
        numel: number of elements.
        itemsize: bytes per element of its gradient.
        ready_s: when backward has produced its gradient, from the start of backward.
        shape: its sides, for methods that look at matrices; one side if not known.
    """

    __pydantic_config__: ClassVar = files.STRICT

    name: str
    numel: int
    itemsize: int = 4
    ready_s: float
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_range("numel", self.numel, 0, 1e13)
        if self.shape and math.prod(self.shape) != self.numel:
            raise FileError(f"shape: {self.shape} of {self.name} does not hold numel={self.numel} elements.")
        require_range("itemsize", self.itemsize, 1, 16)
        require_range("ready_s", self.ready_s, 0.0, MAX_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One worker's training step without any exchange.

    Attributes:
        forward_s: from the start of the forward pass to the start of backward, the loss included.
        backward_s: from the start of backward to its end.
        optimizer_s: the optimizer's step, and whatever else a step does outside of the two passes.
        parameters: in the order in which backward produces their gradients.
        codecs: what encoding and decoding cost.
        pass_s_per_element: one pass over memory, such as adding a leftover.
        copy_s_per_byte: of a copy between the device and its host, one way (PCIe); 0 where they are one.
        nccl_slowdown: how many times as long compute takes while NCCL's kernels are at work on the same device; 1 in
            host memory.
        kernel_share: of the time of codecs' kernels and passes, what compute loses while they run beside it on the same
            device: 1: as if they ran on compute's own stream; 0 in host memory.
        sharing_uncertainty: standard deviation over value of what those two take from compute: 0 where it was measured.
        noise: spread of the step time, from step to step and worker to worker: standard deviation over median.
        compute_uncertainty: standard deviation over value of how far compute may be off in all steps alike: 0 where it
            was measured, more where it was derived from a data sheet.
        contention: wall time over processor time of the training thread, at least 1: how many times longer work
            takes because the workers of a host share its cores. More than 1 where there are fewer cores than
            workers; communication then takes time from compute even while both overlap.
        samples: of a pass of one worker; 0: not known.
        gradient_noise: variance of the workers' mean gradient over the squared norm of what it estimates (see
            `runtime.noise`); None: not known.
        steps_ahead: steps of training that a plan is wanted for; 0: many, or not known.
        device: what it is for: `cpu`, or the name of another device; empty: not known.
        memory_bytes: what a worker's device must hold at any batch: parameters, gradients, the optimizer's state; 0 if
            not known, and then at least parameters and gradients are counted.
        activation_bytes: what backward needs of forward, of a whole batch, unless it is computed again; 0: not known.
    """

    __pydantic_config__: ClassVar = files.STRICT

    forward_s: float
    backward_s: float
    optimizer_s: float
    parameters: tuple[ParameterProfile, ...]
    codecs: tuple[CodecCost, ...] = ()
    pass_s_per_element: float = PRIOR_PASS_S_PER_ELEMENT
    copy_s_per_byte: float = 0.0
    nccl_slowdown: float = 1.0
    kernel_share: float = 0.0
    sharing_uncertainty: float = 0.0
    noise: float = 0.02
    compute_uncertainty: float = 0.0
    contention: float = 1.0
    memory_bytes: int = 0
    activation_bytes: int = 0
    samples: int = 0
    gradient_noise: float | None = None
    steps_ahead: int = 0
    device: str = ""
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        for field in ("forward_s", "backward_s", "optimizer_s"):
            require_range(field, vars(self)[field], 0.0, MAX_SECONDS)
        require_range("pass_s_per_element", self.pass_s_per_element, 0.0, 1.0)
        require_range("copy_s_per_byte", self.copy_s_per_byte, 0.0, 1.0)
        require_range("nccl_slowdown", self.nccl_slowdown, 1.0, 100.0)
        require_range("kernel_share", self.kernel_share, 0.0, 10.0)
        require_range("sharing_uncertainty", self.sharing_uncertainty, 0.0, 10.0)
        require_range("noise", self.noise, 0.0, 10.0)
        require_range("gradient_noise", self.gradient_noise or 0.0, 0.0, 1e12)
        require_range("steps_ahead", self.steps_ahead, 0, 1e15)
        require_range("compute_uncertainty", self.compute_uncertainty, 0.0, 10.0)
        require_range("contention", self.contention, 1.0, MAX_CONTENTION)
        require_range("samples", self.samples, 0, MAX_SAMPLES)
        require_range("memory_bytes", self.memory_bytes, 0, 1e15)
        require_range("activation_bytes", self.activation_bytes, 0, 1e18)
        _require_parameters(self.parameters, self.backward_s)

    @classmethod
    def uniform(
        cls,
        *,
        layers: int,
        numel_per_layer: int,
        forward_s: float,
        backward_s: float,
        optimizer_s: float = 0.0,
    ) -> Profile:
        """Returns the profile of equal float32 layers, of which nothing was measured.

        >>> Profile.uniform(layers=2, numel_per_layer=10, forward_s=0.1, backward_s=0.2).parameters[0].ready_s
        0.1
        """
        parameters = tuple(
            ParameterProfile(
                name=f"layer{layers - 1 - place}",
                numel=numel_per_layer,
                ready_s=backward_s * (place + 1) / layers,
            )
            for place in range(layers)
        )
        return cls(forward_s=forward_s, backward_s=backward_s, optimizer_s=optimizer_s, parameters=parameters)

    @classmethod
    def read(cls, path: str | pathlib.Path) -> Profile:
        """Reads a profile file.

        Raises:
            FileError: unreadable, or a field that is wrong, named.
        """
        return files.read(path, cls)

    def write(self, path: str | pathlib.Path) -> None:
        """Writes the profile as YAML."""
        files.write(path, self)

    @cached_property
    def _hash(self) -> int:
        return hash((self.parameters, self.forward_s, self.backward_s, self.optimizer_s))

    def __hash__(self) -> int:
        """Returns the hash of what it holds, found once: profiles are large, and keys of many caches."""
        return self._hash

    @property
    def is_apart(self) -> bool:
        """Whether it is of a device whose memory is not the host's."""
        return self.copy_s_per_byte > 0

    @property
    def compute_s(self) -> float:
        """A whole step without exchange."""
        return self.forward_s + self.backward_s + self.optimizer_s

    @functools.cached_property
    def num_bytes(self) -> int:
        """Size of all gradients together."""
        return sum(p.numel * p.itemsize for p in self.parameters)

    @property
    def least_memory_bytes(self) -> int:
        """What a worker's device must hold at least: as given, or parameters and gradients."""
        return max(self.memory_bytes, 2 * self.num_bytes)

    def codec_cost(self, sender: Sender) -> CodecCost:
        """Returns what was measured of a sender, else what is assumed of it; see `assumed_cost`."""
        compression = str(sender)
        by_text = {cost.compression: cost for cost in self.codecs}
        return by_text.get(compression) or self.assumed_cost(sender).cost

    def assumed_cost(self, sender: Sender) -> AssumedCost:
        """Returns the cost of a sender that was not timed, and from what: its nearest relative, else a prior."""
        found = from_relatives(sender, self.codecs, self.pass_s_per_element)
        passes = f"that of {sender.prior_passes:g} passes over memory each way"
        return found or AssumedCost(cost=self._prior(sender), why=passes)

    def costs_unmeasured(self, sender: Sender) -> str:
        """Returns a sentence's part that says what a sender's cost is taken from; empty where it was measured."""
        if sender.name == "none" or any(cost.compression == str(sender) for cost in self.codecs):
            return ""
        return f"the time of {sender}, taken to be {self.assumed_cost(sender).why}"

    def _prior(self, sender: Sender) -> CodecCost:
        """Returns passes over the device's memory; or over the host's, and a copy each way, where kernels are there."""
        each_s = 0.0
        if sender.name != "none":
            pass_s, copy_s = self.pass_s_per_element, 0.0
            if sender.on_host and self.copy_s_per_byte:
                pass_s, copy_s = PRIOR_PASS_S_PER_ELEMENT, self.copy_s_per_byte * self.parameters[0].itemsize
            each_s = sender.prior_passes * pass_s + copy_s
        return CodecCost(compression=str(sender), encode_s_per_element=each_s, decode_s_per_element=each_s)


def _require_parameters(parameters: Sequence[ParameterProfile], backward_s: float) -> None:
    if not parameters:
        raise FileError(
            "parameters: there are none, so there is nothing to exchange; profile a model that trains."
        )
    names = [p.name for p in parameters]
    if (
        twice := sorted({name for name in names if names.count(name) > 1})
        if len(set(names)) < len(names)
        else []
    ):
        raise FileError(f"parameters: {', '.join(twice)} appears more than once; list each parameter once.")
    latest = max(parameters, key=lambda p: p.ready_s)
    if latest.ready_s > backward_s * 1.001 + 1e-9:
        raise FileError(
            f"parameters: {latest.name} is ready_s {latest.ready_s:g} after the start of backward, which ends at "
            f"backward_s {backward_s:g}; both count from the start of backward."
        )
