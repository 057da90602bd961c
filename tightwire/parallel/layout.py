"""How a transformer and its batch are cut: a layout, and what makes one legal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tightwire.errors import PlanError
from tightwire.parallel.transformer import Transformer

Shard = Literal["none", "zero1", "zero2", "zero3"]
ContextBy = Literal["ring", "ulysses"]
Schedule = Literal["1f1b", "interleaved", "zero-bubble"]
Recompute = Literal["none", "selective", "full"]
Outermost = Literal["pipeline", "data"]
TRUTHS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a transformer and its batch are cut.

    Ranks are placed from the inside out: tensor, context, then data and pipeline. Experts are spread over the ranks of
    the data and context dimensions.

    Attributes:
        data: shares of the batch.
        shard: what the shares keep a part of, in place of a whole copy: the optimizer's state (`zero1`), gradients as
            well (`zero2`), and parameters (`zero3`, FSDP). Rajbhandari et al. 2020, arXiv:1910.02054.
        shard_group: over how many neighbouring shares that is spread (hybrid); 0: over all of them.
        tensor: shards of each layer.
        sequence: whether they also share out the sequence between products. Korthikanti et al., arXiv:2205.05198.
        context: parts of each sequence.
        context_by: `ring` (keys and values go round; Liu et al. 2023, arXiv:2310.01889), or `ulysses` (all-to-all from
            sequence to heads and back; Jacobs et al. 2023, arXiv:2309.14509).
        pipeline: stages of layers.
        schedule: of a pipeline's micro-batches; `zero-bubble` is ZB-H1 of Qi et al. 2024, arXiv:2401.10241.
        chunks: of an interleaved pipeline: stretches of layers that each stage holds.
        expert: over how many ranks the experts of a layer are spread.
        micro_batch: sequences that go through a stage together.
        recompute: what backward computes again in place of storing it: nothing, the core of attention, or the layer.
        outermost: whether stages or shares of the batch are farthest apart.
    """

    data: int = 1
    shard: Shard = "none"
    shard_group: int = 0
    tensor: int = 1
    sequence: bool = False
    context: int = 1
    context_by: ContextBy = "ring"
    pipeline: int = 1
    schedule: Schedule = "1f1b"
    chunks: int = 1
    expert: int = 1
    micro_batch: int = 1
    recompute: Recompute = "full"
    outermost: Outermost = "pipeline"

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "context", "pipeline", "chunks", "expert", "micro_batch"):
            if (value := vars(self)[name]) < 1:
                raise PlanError(f"{name}={value}: at least 1.")
        for name, kind in (("shard", Shard), ("context_by", ContextBy), ("schedule", Schedule),
                           ("recompute", Recompute), ("outermost", Outermost)):  # fmt: skip
            if (value := vars(self)[name]) not in get_args(kind):
                raise PlanError(f"{name}={value} is unknown; known: {', '.join(get_args(kind))}.")
        if self.shard_group and (
            self.shard == "none" or self.shard_group < 0 or self.data % self.shard_group
        ):
            raise PlanError(
                f"shard_group={self.shard_group} needs a shard of zero1, zero2 or zero3, and must divide the "
                f"{self.data} shares of the batch: {_listed(divisors(self.data))}."
            )
        if (self.schedule == "interleaved") != (self.chunks > 1) or (self.chunks > 1 and self.pipeline == 1):
            raise PlanError(
                f"schedule={self.schedule}, chunks={self.chunks}, pipeline={self.pipeline}: an interleaved pipeline "
                "has two stages and two chunks at least, and no other has chunks."
            )

    @classmethod
    def parse(cls, fields: Mapping[str, object]) -> Layout:
        """Reads fields as files and tables give them, such as `{"data": "4", "sequence": "1", "shard": "zero1"}`.

        Raises:
            PlanError: an unknown field, or a value that it cannot have.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(kinds)):
            raise PlanError(f"a layout has no {', '.join(unknown)}; it has {', '.join(kinds)}.")
        read: dict[str, Callable[[object], Any]] = {"int": lambda text: int(str(text)), "bool": _truth}
        try:
            values: dict[str, Any] = {
                name: read.get(str(kinds[name]), str)(value) for name, value in fields.items()
            }
        except ValueError as error:
            raise PlanError(f"a layout's degrees are whole numbers, or true and false: {error}.") from None
        return cls(**values)

    @property
    def workers(self) -> int:
        """Devices that it takes."""
        return self.tensor * self.context * self.data * self.pipeline

    @property
    def shards(self) -> int:
        """Over how many ranks of the data and context dimensions state is spread."""
        return 1 if self.shard == "none" else (self.shard_group or self.data) * self.context

    @property
    def layout(self) -> dict[str, int | str | bool]:
        """The fields, as values for JSON."""
        spread = f"{self.shard}:{self.shard_group}" if self.shard_group else self.shard
        stages = f"{self.schedule}:{self.chunks}" if self.chunks > 1 else self.schedule
        return {
            "data": self.data,
            "shard": spread,
            "tensor": self.tensor,
            "sequence": self.sequence,
            "context": self.context,
            "context_by": self.context_by,
            "pipeline": self.pipeline,
            "schedule": stages,
            "expert": self.expert,
            "micro_batch": self.micro_batch,
            "recompute": self.recompute,
            "outermost": self.outermost,
        }

    def __str__(self) -> str:
        parts = [f"d{self.data}"]
        if self.shard != "none":
            parts[0] += f"({self.shard}{f' in {self.shard_group}' if self.shard_group else ''})"
        if self.tensor > 1:
            parts.append(f"t{self.tensor}{'+sequence' if self.sequence else ''}")
        if self.context > 1:
            parts.append(f"c{self.context}({self.context_by})")
        if self.pipeline > 1:
            parts.append(f"p{self.pipeline}({self.layout['schedule']})")
        if self.expert > 1:
            parts.append(f"e{self.expert}")
        if self.outermost == "data" and self.data > 1 and self.pipeline > 1:
            parts.append("data outermost")
        return f"{'·'.join(parts)}, micro-batch {self.micro_batch}, recompute {self.recompute}"


def _truth(value: object) -> bool:
    """Reads true and false as people write them.

    Raises:
        ValueError: neither.
    """
    text = str(value).lower()
    if text not in TRUTHS:
        raise ValueError(f"{str(value)!r} is neither true nor false")
    return TRUTHS[text]


def divisors(number: int) -> tuple[int, ...]:
    """Returns the divisors of a number, ascending.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    return tuple(i for i in range(1, number + 1) if number % i == 0)


def legal_stages(model: Transformer) -> tuple[int, ...]:
    """Returns the legal numbers of pipeline stages: embedding and logits may stand for a layer each.

    >>> legal_stages(Transformer(layers=6, hidden=8, heads=2, seq_len=8))
    (1, 2, 3, 4, 6)
    """
    counts = {p for extra in (0, 1, 2) for p in divisors(model.layers + extra) if p <= model.layers}
    return tuple(sorted(counts))


def layers_of_stage(model: Transformer, how: Layout) -> int:
    """Returns how many layers the fullest stage holds."""
    return -(-model.layers // how.pipeline)


def require_legal(model: Transformer, how: Layout, batch: int) -> int:
    """Refuses degrees that leave a rest.

    Args:
        model: that is cut.
        how: it is cut.
        batch: sequences per step, over all workers.

    Returns:
        The number of micro-batches of each pipeline.

    Raises:
        PlanError: which degree does not divide what, and which ones do.
    """
    if found := next(_wrong(model, how, batch), None):
        raise PlanError(f"{how}: {found}")
    return batch // (how.data * how.micro_batch)


def _wrong(model: Transformer, how: Layout, batch: int) -> Iterator[str]:
    heads = model.heads
    if heads % how.tensor:
        yield f"tensor={how.tensor} does not divide {heads} heads; legal: {_listed(divisors(heads))}."
    if how.pipeline not in legal_stages(model):
        yield (
            f"pipeline={how.pipeline} does not divide {model.layers} layers, nor with the embedding or the logits for "
            f"one more; legal: {_listed(legal_stages(model))}."
        )
    if model.seq_len % how.context:
        yield (
            f"context={how.context} does not divide sequences of {model.seq_len} tokens; legal: "
            f"{_listed(divisors(model.seq_len))}."
        )
    own = heads // how.tensor if heads % how.tensor == 0 else heads
    if how.context_by == "ulysses" and own % how.context:
        yield (
            f"context={how.context} by ulysses does not divide the {own} heads that a tensor shard has; legal: "
            f"{_listed(divisors(own))}, or context_by=ring."
        )
    if how.sequence and model.seq_len // how.context % how.tensor:
        yield f"tensor={how.tensor} does not divide the {model.seq_len // how.context} tokens that it shares out."
    yield from _wrong_experts(model, how)
    if how.chunks > 1 and layers_of_stage(model, how) % how.chunks:
        yield (
            f"chunks={how.chunks} does not divide the {layers_of_stage(model, how)} layers of a stage; legal: "
            f"{_listed(divisors(layers_of_stage(model, how)))}."
        )
    if batch % (how.data * how.micro_batch):
        legal = list(divisors(batch // how.data)) if batch % how.data == 0 else []
        advice = f"micro_batch: {_listed(legal)}" if legal else f"data: {_listed(divisors(batch))}"
        yield (
            f"a batch of {batch} sequences does not divide into {how.data} shares of micro-batches of "
            f"{how.micro_batch}; legal {advice}."
        )
    elif how.chunks > 1 and batch // (how.data * how.micro_batch) % how.pipeline:
        yield (
            f"an interleaved pipeline takes micro-batches {how.pipeline} at a time, and there are "
            f"{batch // (how.data * how.micro_batch)}."
        )


def _wrong_experts(model: Transformer, how: Layout) -> Iterator[str]:
    if how.expert == 1:
        return
    if not model.experts:
        yield f"expert={how.expert}, and the model has no experts; legal: 1."
        return
    ranks = how.data * how.context
    legal = [e for e in divisors(model.experts) if ranks % e == 0]
    if how.expert not in legal:
        yield (
            f"expert={how.expert} does not divide both {model.experts} experts and the {ranks} ranks of the data and "
            f"context dimensions; legal: {_listed(legal)}."
        )


def _listed(numbers: list[int] | tuple[int, ...]) -> str:
    shown = [str(number) for number in numbers[:12]]
    return ", ".join([*shown, "…"] if len(numbers) > 12 else shown)
