"""Every plan worth predicting: the legal combinations of all members, at sensible settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from tightwire.collectives import AllReduce
from tightwire.compression import Codec, Stage
from tightwire.errors import PlanError
from tightwire.plan import Axis, Member, Plan, catalogue, parse_compression, parse_member, print_bytes
from tightwire.reducers import Reduction
from tightwire.sync import Sync

Allowance = Literal["lossless", "lossy"]

# Plain PyTorch: DistributedDataParallel with its default bucket size.
STOCK = "bsp/allreduce/none/fusion:25MiB"
# Members worth trying at several settings. Others are tried as their example, or their defaults, have them.
SETTINGS: dict[str, tuple[str, ...]] = {
    "local": ("local:4", "local:8", "local:16", "local:32"),
    "topk": ("topk:0.1", "topk:0.03", "topk:0.01", "topk:0.003", "topk:0.001"),
}
# On lines that are all alike the other programs cost no less than one of these.
PROGRAMS_TRIED = ("native", "ring", "recursive-doubling", "halving-doubling", "allgather")
SMALLEST_FUSION_BYTES = 2**18
# A biased codec that drops more than half of the bits goes wrong without error feedback (Karimireddy et al. 2019).
MAX_RATIO_WITHOUT_FEEDBACK = 2.0


def candidates(gradient_bytes: int, allow: Allowance) -> Iterator[Plan]:
    """Yields every plan worth predicting for a model with gradients of this size; stock PyTorch's is among them.

    Args:
        gradient_bytes: of all gradients together; bounds the fusion sizes.
        allow: `lossless`: every step is made with the exact mean gradient; `lossy`: anything.

    Raises:
        PlanError: an unknown allowance.
    """
    if allow not in get_args(Allowance):
        raise PlanError(f"allow={allow!r} is no allowance; known: {', '.join(get_args(Allowance))}.")
    for sync in _members("sync"):
        assert isinstance(sync, Sync)
        for compression in _compressions():
            if allow == "lossy" or is_lossless(sync, compression):
                yield from _plans(sync, compression, gradient_bytes)


def is_lossless(sync: Member, compression: tuple[Member, ...]) -> bool:
    """Whether every step is made with the exact mean gradient of all workers."""
    sender = compression[0]
    assert isinstance(sync, Sync)
    assert isinstance(sender, Codec | Reduction)
    return sync.averages_gradients(1) and sender.lossless


def harm(plan: Plan) -> float:
    """Orders plans by how much they change what is learnt from: how many times fewer bytes carry the agreement."""
    assert isinstance(plan.sync, Sync)
    return plan.sync.steps_per_round * _ratio(plan.compression)


def departures(plan: Plan) -> int:
    """Counts the answers in which a plan differs from plain PyTorch's."""
    return sum(a != b for a, b in zip(answers(plan), answers(Plan.parse(STOCK)), strict=True))


def answers(plan: Plan) -> tuple[str, ...]:
    """Returns the four answers as text."""
    return str(plan.sync), str(plan.architecture), plan.compression_text, str(plan.schedule)


def _plans(sync: Sync, compression: tuple[Member, ...], gradient_bytes: int) -> Iterator[Plan]:
    codec = compression[0]
    assert isinstance(codec, Codec)
    # Rounds of parameters overlap with nothing, so that how they are cut makes no difference worth a search.
    texts = _schedules(gradient_bytes) if sync.averages_gradients(1) else ["sequential"]
    schedules = [parse_member("schedule", text) for text in texts]
    for architecture in _architectures(codec):
        for schedule in schedules:
            try:
                yield Plan(sync, architecture, compression, schedule)
            except PlanError:  # members that do not go together
                continue


def _members(axis: Axis) -> Iterator[Member]:
    for name, member in catalogue(axis).items():
        if not issubclass(member, Stage):
            for text in SETTINGS.get(name, (member.example or name,)):
                yield parse_member(axis, text.partition("+")[0])


def _compressions() -> Iterator[tuple[Member, ...]]:
    for codec in _members("compression"):
        if not isinstance(codec, Codec):  # reductions: the simulator does not know their exchanges yet
            continue
        if codec.lossless or codec.unbiased or _ratio((codec,)) <= MAX_RATIO_WITHOUT_FEEDBACK:
            yield (codec,)
        # Leftovers of an unbiased codec that is no contraction grow without bound.
        if not codec.lossless and not (codec.unbiased and codec.contraction(2**20) is None):
            yield parse_compression(f"{codec}+ef")


def _architectures(codec: Codec) -> Iterator[AllReduce]:
    automatic = AllReduce()
    for program in PROGRAMS_TRIED:
        if program == automatic.program_name(codec):
            yield automatic
        elif program != "native" or codec.lossless:  # how backends sum half precision is not measured
            yield AllReduce(program)


def _schedules(gradient_bytes: int) -> list[str]:
    sizes = {25 * 2**20}
    size = SMALLEST_FUSION_BYTES
    while size < gradient_bytes:
        sizes.add(size)
        size *= 2
    fixed = [name for name in catalogue("schedule") if name != "fusion"]
    return fixed + [f"fusion:{print_bytes(size)}" for size in sorted(sizes)]


def _ratio(compression: tuple[Member, ...]) -> float:
    """Returns how many times smaller than the bucket its messages are."""
    codec, numel = compression[0], 2**20
    assert isinstance(codec, Codec)
    return 4 * numel / codec.wire_bytes(numel, 4)
