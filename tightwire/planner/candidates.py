"""Which plans are worth predicting: every member at sensible settings, and what each plan changes about training."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal, get_args

from tightwire.answers import Member, text_with
from tightwire.architecture import PROGRAMS
from tightwire.architecture.gossip import GRAPHS
from tightwire.catalogue import catalogue, parse_compression
from tightwire.compression import Codec, Stage
from tightwire.errors import PlanError
from tightwire.plan import Plan
from tightwire.planner.deviation import ratio
from tightwire.units import print_bytes

Allowance = Literal["lossless", "lossy", "stale"]
ALLOWANCES: tuple[Allowance, ...] = get_args(Allowance)

# Plain PyTorch: DistributedDataParallel with its default bucket size.
STOCK = "bsp/allreduce/none/fusion:25MiB"
# What candidates that show another answer are ordered by: the optimal merge suits any wire and any codec.
BASE = "bsp/allreduce/none/mgwfbp"
# Members worth trying at several settings. Others are tried as their example, or their defaults, have them.
SETTINGS: dict[str, tuple[str, ...]] = {
    "local": ("local:4", "local:8", "local:16", "local:32"),
    "diloco": ("diloco:16", "diloco:64"),
    "ssp": ("ssp:1", "ssp:3", "ssp:8"),
    "topk": ("topk:0.1", "topk:0.03", "topk:0.01", "topk:0.003", "topk:0.001"),
    "powersgd": ("powersgd:1", "powersgd:2", "powersgd:4", "powersgd:8"),
    "bytescheduler": (
        "bytescheduler",
        "bytescheduler:256KiB,credit_bytes=1MiB,fuse_bytes=64KiB",
        "bytescheduler:1MiB,credit_bytes=4MiB,fuse_bytes=256KiB",
        "bytescheduler:4MiB,credit_bytes=16MiB,fuse_bytes=1MiB",
    ),
    "p3": ("p3", "p3:1MiB"),
    "streaming": ("streaming:2", "streaming"),
}
# Methods of gossip that are considered beside plain averaging over every graph worth a try.
GOSSIP_METHODS = ("sgp", "ad-psgd")
SMALLEST_FUSION_BYTES = 2**18
FIRST_ROUND = 1
# A biased codec that drops more than half of the bits goes wrong without error feedback (Karimireddy et al. 2019).
MAX_RATIO_WITHOUT_FEEDBACK = 2.0


def candidates(
    gradient_bytes: int, allow: Allowance, *, levelled: bool = False, adding: bool = False
) -> Iterator[Plan]:
    """Yields every plan to begin a search with: each member somewhere, stock PyTorch's plan first.

    Plans that differ from these in several answers at once are found from them: see `neighbours`.

    Args:
        gradient_bytes: of all gradients together; bounds the fusion sizes.
        allow: `lossless`: every step is made with the exact mean gradient; `lossy`: with what is left of it after
            compression; `stale`: anything, such as steps made alone, with old gradients, or with some neighbours'.
        levelled: whether links are not all alike, so that programs that know who sits with whom are worth a try.
        adding: whether a switch adds.

    Raises:
        PlanError: an unknown allowance.
    """
    if allow not in ALLOWANCES:
        raise PlanError(f"allow={allow!r} is no allowance; known: {', '.join(ALLOWANCES)}.")
    seen: set[str] = set()
    for text in _texts(gradient_bytes, levelled, adding):
        plan = legal(text)
        if plan is not None and str(plan) not in seen and is_allowed(plan, allow):
            seen.add(str(plan))
            yield plan


def neighbours(
    plan: Plan,
    gradient_bytes: int,
    allow: Allowance,
    *,
    levelled: bool = False,
    adding: bool = False,
    apart: bool = False,
) -> Iterator[Plan]:
    """Yields the plans that differ from `plan` in one answer, or in the setting of one, within the allowance.

    `apart`: whether the model is on a device whose memory is not the host's, so that servers may keep shards there.
    """
    answers_tried = {
        "sync": sync_texts() if allow == "stale" else ["bsp"],
        "architecture": architecture_texts(levelled, allow == "stale", adding, apart),
        "compression": compression_texts(),
        "schedule": schedule_texts(gradient_bytes),
    }
    for axis, texts in answers_tried.items():
        for text in texts:
            other = legal(text_with(plan, **{axis: text}))
            if other is not None and other != plan and is_allowed(other, allow):
                yield other


def legal(text: str) -> Plan | None:
    """Returns the plan of a text, or None where its members do not go together."""
    try:
        return Plan.legal(text)
    except PlanError:
        return None


def allowance_of(plan: Plan) -> Allowance:
    """Returns the least that must be allowed for a plan.

    >>> allowance_of(Plan.parse("bsp/ps")), allowance_of(Plan.parse("delayed:1"))
    ('lossless', 'stale')
    """
    if not (plan.sync.is_bulk and plan.architecture.agrees):
        return "stale"
    sender, *stages = plan.compression
    return "lossless" if sender.lossless and not stages else "lossy"


def is_allowed(plan: Plan, allow: Allowance) -> bool:
    """Whether an allowance admits a plan."""
    return ALLOWANCES.index(allowance_of(plan)) <= ALLOWANCES.index(allow)


def is_lossless(plan: Plan) -> bool:
    """Whether every step is made with the exact mean gradient of all workers."""
    return allowance_of(plan) == "lossless"


def keeps_optimizer(plan: Plan) -> bool:
    """Whether the user's optimizer may stay as it is.

    Votes and signs need a learning rate of their own; momenta that are sent take the optimizer's own momentum's place;
    MuLoCo is about Muon. Such plans are predicted and shown, and never chosen for a user who did not ask for them by
    name.

    >>> keeps_optimizer(Plan.parse("diloco:30")), keeps_optimizer(Plan.parse("muloco:30"))
    (True, False)
    """
    return plan.sync.keeps_optimizer and all(stage.keeps_optimizer for stage in plan.compression)


def begins_as_it_goes_on(plan: Plan) -> bool:
    """Whether the first rounds cost what later ones do: a warm-up that sends more is not seen in a step's time.

    >>> begins_as_it_goes_on(Plan.parse("bsp/allreduce/topk:0.01+ef+warmup:60"))
    False
    """
    stages = [stage for stage in plan.compression[1:] if isinstance(stage, Stage)]
    return all(stage.sender_at(plan.sender, FIRST_ROUND) == plan.sender for stage in stages)


def departures(plan: Plan) -> int:
    """Counts the answers in which a plan differs from plain PyTorch's."""
    return sum(a != b for a, b in zip(answers(plan), answers(stock_plan()), strict=True))


@functools.cache
def stock_plan() -> Plan:
    """Returns plain PyTorch's plan."""
    return Plan.parse(STOCK)


def answers(plan: Plan) -> tuple[str, ...]:
    """Returns the four answers as text."""
    return str(plan.sync), str(plan.architecture), plan.compression_text, str(plan.schedule)


def _texts(gradient_bytes: int, levelled: bool, adding: bool) -> Iterator[str]:
    """Yields the texts of candidates, legal or not, within no allowance."""
    base = Plan.parse(BASE)
    yield STOCK
    for schedule in schedule_texts(gradient_bytes):
        yield text_with(base, schedule=schedule)
    for architecture in architecture_texts(levelled, True, adding):
        for schedule in ("mgwfbp", "fusion:25MiB"):
            yield text_with(base, architecture=architecture, schedule=schedule)
    for compression in compression_texts():
        for architecture in ("allreduce", "allreduce:ring"):
            yield text_with(base, architecture=architecture, compression=compression)
    for sync in sync_texts():
        for architecture in ("allreduce", "ps", "gossip:one-peer-exponential", "gossip:ad-psgd"):
            for schedule in ("mgwfbp", "sequential", "streaming:2", "streaming"):
                yield text_with(base, sync=sync, architecture=architecture, schedule=schedule)
    for compression in compression_texts():
        yield f"bsp/gossip:exponential/{compression}/sequential"


def compression_texts() -> tuple[str, ...]:
    """Returns the compressions worth a try: senders alone where that is sound, with feedback, and stages as shown."""
    return _compression_texts(tuple(catalogue("compression").values()))


@functools.cache
def _compression_texts(members: tuple[type[Member], ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for member in members for text in _compressions_with(member)))


def _compressions_with(member: type[Member]) -> Iterator[str]:
    for text in SETTINGS.get(member.name, (member.example or member.name,)):
        if issubclass(member, Stage):
            yield text
        else:
            yield from _sendings(text.partition("+")[0])
            if len(parse_compression(text)) > 1:
                yield "+".join(map(str, parse_compression(text)))


def _sendings(text: str) -> Iterator[str]:
    """Yields a sender with the stages that make it sound; nothing for a recipe, which has its own."""
    sender, *stages = parse_compression(text)
    if stages:
        return
    if sender.lossless or sender.unbiased or sender.votes or ratio((sender,)) <= MAX_RATIO_WITHOUT_FEEDBACK:
        yield str(sender)
    # Leftovers of an unbiased codec that is no contraction grow without bound.
    expands = isinstance(sender, Codec) and sender.unbiased and sender.contraction(2**20) is None
    if not (sender.lossless or sender.votes or expands):
        yield f"{sender}+ef"


def lacks_feedback(plan: Plan) -> bool:
    """Whether a plan drops most of what it should send for good: a biased codec without anything that remembers.

    >>> [lacks_feedback(Plan.parse(f"bsp/allreduce/{text}")) for text in ("topk:0.01", "topk:0.01+ef", "bf16")]
    [True, False, False]
    """
    sender = plan.compression[0]
    if len(plan.compression) > 1 or not isinstance(sender, Codec):
        return False
    sound = sender.lossless or sender.unbiased or sender.votes
    return not sound and ratio((sender,)) > MAX_RATIO_WITHOUT_FEEDBACK


def sync_texts() -> tuple[str, ...]:
    """Returns the policies worth a try."""
    return tuple(
        text for name, m in catalogue("sync").items() for text in SETTINGS.get(name, (m.example or name,))
    )


def architecture_texts(
    levelled: bool, gossips: bool, adding: bool = False, apart: bool = False
) -> tuple[str, ...]:
    """Returns the architectures worth a try. Dedicated servers are not: they take workers away from training."""
    places = ("anywhere", "where links differ") if levelled else ("anywhere",)
    programs = (f"allreduce:{name}" for name, recipe in PROGRAMS.items() if recipe.tried in places)
    graphs = [f"gossip:{name}" for name, recipe in GRAPHS.items() if recipe.is_tried]
    others = [
        m.example or name
        for name, m in catalogue("architecture").items()
        if name not in ("allreduce", "ps", "gossip")
    ]
    gossip = [*graphs, *(f"gossip:{method}" for method in GOSSIP_METHODS)] if gossips else []
    switched = ("allreduce:in-network",) if adding else ()
    servers = ("ps", "ps:on_device=true") if apart else ("ps",)
    return ("allreduce", *switched, *programs, *servers, *gossip, *others)


@functools.lru_cache(maxsize=64)
def schedule_texts(gradient_bytes: int) -> tuple[str, ...]:
    """Returns the schedules worth a try for gradients of this size."""
    sizes = {25 * 2**20}
    size = SMALLEST_FUSION_BYTES
    while size < gradient_bytes and size <= 2**30:
        sizes.add(size)
        size *= 2
    fixed = [
        text
        for name, m in catalogue("schedule").items()
        if name != "fusion"
        for text in SETTINGS.get(name, (m.example or name,))
    ]
    return (*fixed, *(f"fusion:{print_bytes(size)}" for size in sorted(sizes)))
