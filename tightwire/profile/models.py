"""Well-known models as lists of layers: their parameters and floating-point operations, from their papers.

What a plan needs of a model is known without running it: how large each tensor is, and in which share of backward it
becomes ready. A device's speed turns that into a `Profile` (derived.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tightwire.errors import FileError

Shape = tuple[int, ...]
# Of an attention head, in BERT and GPT-2 alike.
HEAD_WIDTH = 64
RESNET = "He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385"
RESNEXT = "Xie et al., Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, in the order of the forward pass.

    Attributes:
        name: prefix of its parameters' names.
        shapes: of its parameters, by name.
        forward_flops: of one sample; a multiplication and an addition are two.
        kept_values: of one sample, which the layer makes and backward needs again.
    """

    name: str
    shapes: dict[str, Shape]
    forward_flops: float
    kept_values: float = 0.0

    @property
    def numels(self) -> tuple[int, ...]:
        """Elements of each of its parameters."""
        return tuple(map(math.prod, self.shapes.values()))

    @property
    def numel(self) -> int:
        """Elements of all its parameters."""
        return sum(self.numels)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model as its layers.

    Attributes:
        name: as in `--model NAME`.
        sample: what one sample is, in words.
        layers: in the order of the forward pass.
        paper: where the architecture comes from.
    """

    name: str
    sample: str
    layers: tuple[Layer, ...]
    paper: str

    @property
    def numel(self) -> int:
        """Elements of all parameters.

        >>> f"{model_shape('resnet50').numel:,}", f"{model_shape('vgg16').numel:,}"
        ('25,557,032', '138,357,544')
        """
        return sum(layer.numel for layer in self.layers)

    @property
    def forward_flops(self) -> float:
        """Floating-point operations of one sample's forward pass."""
        return sum(layer.forward_flops for layer in self.layers)

    @property
    def kept_values(self) -> float:
        """Activations of one sample that backward needs again, where nothing is computed twice.

        A transformer's block keeps 17 values per token and unit of width with their masks, and 2.5 per head and pair of
        tokens where attention writes its scores (Korthikanti et al., arXiv:2205.05198, equation 1: 34·s·h + 5·a·s²
        bytes).

        >>> round(model_shape("bert-large", 128).kept_values / 24 / 128 / 1024)
        24
        """
        return sum(layer.kept_values for layer in self.layers)


def model_shape(name: str, length: int | None = None) -> ModelShape:
    """Returns a model by name.

    Args:
        name: as in `--model NAME`.
        length: tokens of a sequence; None: as usual for the model, which its `sample` says.

    Raises:
        FileError: an unknown name, where the known ones are listed; or a length of what has none.
    """
    if name not in MODELS:
        raise FileError(f"{name!r} is no known model; known: {', '.join(MODELS)}.")
    if length is None:
        return MODELS[name](name)
    if name not in SEQUENCES:
        raise FileError(f"{name} trains on images, which have no length in tokens; leave --length out.")
    if not 1 <= length <= MAX_LENGTH:
        raise FileError(f"a length of {length} tokens cannot be; write 1 to {MAX_LENGTH:,}.")
    return SEQUENCES[name](length)(name)


def _conv(name: str, channels: tuple[int, int], kernel: int, side: int, *, bias: bool = False) -> Layer:
    """A convolution to `side` × `side` pixels."""
    come, go = channels
    shapes: dict[str, Shape] = {"weight": (go, come, kernel, kernel)}
    if bias:
        shapes["bias"] = (go,)
    return Layer(
        name=name,
        shapes=shapes,
        forward_flops=2.0 * kernel**2 * come * go * side**2,
        kept_values=go * side**2,
    )


def _norm(name: str, width: int, positions: int, *, bias: bool = True) -> Layer:
    """A normalisation of `positions` vectors: about 5 operations per element."""
    shapes: dict[str, Shape] = {"weight": (width,)}
    if bias:
        shapes["bias"] = (width,)
    kept = float(width * positions)
    return Layer(name=name, shapes=shapes, forward_flops=5.0 * width * positions, kept_values=kept)


def _linear(
    name: str, widths: tuple[int, int], positions: int = 1, *, bias: bool = True, is_bent: bool = False
) -> Layer:
    """A product; `is_bent`: a non-linearity follows that writes its result beside its input."""
    come, go = widths
    shapes: dict[str, Shape] = {"weight": (go, come)}
    if bias:
        shapes["bias"] = (go,)
    kept = float(go * positions * (2 if is_bent else 1))
    return Layer(name=name, shapes=shapes, forward_flops=2.0 * come * go * positions, kept_values=kept)


def _embedding(name: str, rows: int, width: int) -> Layer:
    return Layer(name=name, shapes={"weight": (rows, width)}, forward_flops=0.0)


def _attention(name: str, heads_width: int, length: int, *, writes_scores: bool = False) -> Layer:
    """Scores and their use: two products of length × length × width; no parameters.

    Scores of every pair of tokens and head are kept only where they are written out, before FlashAttention (2022).
    """
    kept = float(length * heads_width)
    if writes_scores:
        kept += 2.5 * length**2 * heads_width / HEAD_WIDTH
    return Layer(name=name, shapes={}, forward_flops=4.0 * length**2 * heads_width, kept_values=kept)


def _resnet(
    stages: tuple[int, int, int, int], *, groups: int = 1, group_width: int = 64, paper: str
) -> Callable[[str], ModelShape]:
    """A residual network of bottlenecks; with groups, the middle convolution is cut into as many (ResNeXt).

    Args:
        stages: bottlenecks in each of the four stages.
        groups: of the middle convolution.
        group_width: channels of a group in the first stage.
        paper: where it is from.
    """

    def bottleneck(prefix: str, come: int, planes: int, side: int, stride: int) -> Iterator[Layer]:
        go, middle = 4 * planes, planes * group_width // 64 * groups
        # A group of the middle convolution sees its own channels alone.
        for number, (channels, kernel, at) in enumerate(
            (
                ((come, middle), 1, side * stride),
                ((middle // groups, middle), 3, side),
                ((middle, go), 1, side),
            ),
            1,
        ):
            yield _conv(f"{prefix}.conv{number}", channels, kernel, at)
            yield _norm(f"{prefix}.bn{number}", channels[1], at**2)
        if come != go:
            yield _conv(f"{prefix}.downsample.0", (come, go), 1, side)
            yield _norm(f"{prefix}.downsample.1", go, side**2)

    def layers() -> Iterator[Layer]:
        yield _conv("conv1", (3, 64), 7, 112)
        yield _norm("bn1", 64, 112**2)
        come = 64
        for stage, (blocks, planes, side) in enumerate(
            zip(stages, (64, 128, 256, 512), (56, 28, 14, 7), strict=True), 1
        ):
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 1 else 1
                yield from bottleneck(f"layer{stage}.{block}", come, planes, side, stride)
                come = 4 * planes
        yield _linear("fc", (2048, 1000))

    return lambda name: ModelShape(
        name=name, sample="an image of 224 × 224 pixels", layers=tuple(layers()), paper=paper
    )


def _vgg16(name: str) -> ModelShape:
    def layers() -> Iterator[Layer]:
        come, side, place = 3, 224, 0
        for repeats, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(repeats):
                yield _conv(f"features.{place}", (come, width), 3, side, bias=True)
                come, place = width, place + 2
            side, place = side // 2, place + 1
        for place, widths in ((0, (512 * 49, 4096)), (3, (4096, 4096)), (6, (4096, 1000))):
            yield _linear(f"classifier.{place}", widths)

    paper = "Simonyan and Zisserman, Very Deep Convolutional Networks, arXiv:1409.1556"
    return ModelShape(name=name, sample="an image of 224 × 224 pixels", layers=tuple(layers()), paper=paper)


def _bert(blocks: int, width: int, length: int = 64) -> Callable[[str], ModelShape]:
    def block(prefix: str) -> Iterator[Layer]:
        for part in ("query", "key", "value"):
            yield _linear(f"{prefix}.attention.self.{part}", (width, width), length)
        yield _attention(f"{prefix}.attention.self", width, length, writes_scores=True)
        yield _linear(f"{prefix}.attention.output.dense", (width, width), length)
        yield _norm(f"{prefix}.attention.output.LayerNorm", width, length)
        yield _linear(f"{prefix}.intermediate.dense", (width, 4 * width), length, is_bent=True)
        yield _linear(f"{prefix}.output.dense", (4 * width, width), length)
        yield _norm(f"{prefix}.output.LayerNorm", width, length)

    def layers() -> Iterator[Layer]:
        for part, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
            yield _embedding(f"bert.embeddings.{part}_embeddings", rows, width)
        yield _norm("bert.embeddings.LayerNorm", width, length)
        for number in range(blocks):
            yield from block(f"bert.encoder.layer.{number}")
        yield _linear("bert.pooler.dense", (width, width))
        yield _linear("cls.predictions.transform.dense", (width, width), length)
        yield _norm("cls.predictions.transform.LayerNorm", width, length)
        # The decoder's weight is the word embedding's; only its bias is its own.
        shapes: dict[str, Shape] = {"bias": (30522,)}
        yield Layer(
            name="cls.predictions",
            shapes=shapes,
            forward_flops=2.0 * 30522 * width * length,
            kept_values=2.0 * 30522 * length,
        )
        yield _linear("cls.seq_relationship", (width, 2))

    paper = "Devlin et al., BERT, arXiv:1810.04805"
    return lambda name: ModelShape(
        name=name, sample=f"a sequence of {length} tokens", layers=tuple(layers()), paper=paper
    )


def _gpt2(blocks: int, width: int, length: int = 1024) -> Callable[[str], ModelShape]:
    def block(prefix: str) -> Iterator[Layer]:
        yield _norm(f"{prefix}.ln_1", width, length)
        yield _linear(f"{prefix}.attn.c_attn", (width, 3 * width), length)
        yield _attention(f"{prefix}.attn", width, length)
        yield _linear(f"{prefix}.attn.c_proj", (width, width), length)
        yield _norm(f"{prefix}.ln_2", width, length)
        yield _linear(f"{prefix}.mlp.c_fc", (width, 4 * width), length, is_bent=True)
        yield _linear(f"{prefix}.mlp.c_proj", (4 * width, width), length)

    def layers() -> Iterator[Layer]:
        yield _embedding("transformer.wte", 50257, width)
        yield _embedding("transformer.wpe", 1024, width)
        for number in range(blocks):
            yield from block(f"transformer.h.{number}")
        yield _norm("transformer.ln_f", width, length)
        yield Layer(  # tied to wte; logits and their logarithms
            name="lm_head",
            shapes={},
            forward_flops=2.0 * 50257 * width * length,
            kept_values=2.0 * 50257 * length,
        )

    paper = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners"
    return lambda name: ModelShape(
        name=name, sample=f"a sequence of {length} tokens", layers=tuple(layers()), paper=paper
    )


def _llama(blocks: int, width: int, hidden: int, length: int = 8192) -> Callable[[str], ModelShape]:
    shared = width // (width // 128) * 8  # grouped queries: 8 heads of keys and of values, 128 wide each

    def block(prefix: str) -> Iterator[Layer]:
        yield _norm(f"{prefix}.input_layernorm", width, length, bias=False)
        for part, go in (("q", width), ("k", shared), ("v", shared), ("o", width)):
            yield _linear(f"{prefix}.self_attn.{part}_proj", (width, go), length, bias=False)
        yield _attention(f"{prefix}.self_attn", width, length)
        yield _norm(f"{prefix}.post_attention_layernorm", width, length, bias=False)
        yield _linear(f"{prefix}.mlp.gate_proj", (width, hidden), length, bias=False, is_bent=True)
        yield _linear(f"{prefix}.mlp.up_proj", (width, hidden), length, bias=False, is_bent=True)
        yield _linear(f"{prefix}.mlp.down_proj", (hidden, width), length, bias=False)

    def layers() -> Iterator[Layer]:
        yield _embedding("model.embed_tokens", 128256, width)
        for number in range(blocks):
            yield from block(f"model.layers.{number}")
        yield _norm("model.norm", width, length, bias=False)
        yield _linear("lm_head", (width, 128256), length, bias=False, is_bent=True)

    paper = "Grattafiori et al., The Llama 3 Herd of Models, arXiv:2407.21783"
    return lambda name: ModelShape(
        name=name, sample=f"a sequence of {length} tokens", layers=tuple(layers()), paper=paper
    )


MAX_LENGTH = 10**7
# By the length of a sequence.
SEQUENCES: dict[str, Callable[[int], Callable[[str], ModelShape]]] = {
    "bert-base": lambda length: _bert(12, 768, length),
    "bert-large": lambda length: _bert(24, 1024, length),
    "gpt2": lambda length: _gpt2(12, 768, length),
    "gpt2-medium": lambda length: _gpt2(24, 1024, length),
    "gpt2-large": lambda length: _gpt2(36, 1280, length),
    "gpt2-xl": lambda length: _gpt2(48, 1600, length),
    "llama-8b": lambda length: _llama(32, 4096, 14336, length),
    "llama-70b": lambda length: _llama(80, 8192, 28672, length),
}
MODELS: dict[str, Callable[[str], ModelShape]] = {
    "resnet50": _resnet((3, 4, 6, 3), paper=RESNET),
    "resnet101": _resnet((3, 4, 23, 3), paper=RESNET),
    "resnext50-32x4d": _resnet((3, 4, 6, 3), groups=32, group_width=4, paper=RESNEXT),
    "resnext101-32x8d": _resnet((3, 4, 23, 3), groups=32, group_width=8, paper=RESNEXT),
    "vgg16": _vgg16,
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "gpt2": _gpt2(12, 768),
    "gpt2-medium": _gpt2(24, 1024),
    "gpt2-large": _gpt2(36, 1280),
    "gpt2-xl": _gpt2(48, 1600),
    "llama-8b": _llama(32, 4096, 14336),
    "llama-70b": _llama(80, 8192, 28672),
}
