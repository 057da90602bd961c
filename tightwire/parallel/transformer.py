"""Transformers as a few numbers: how many parameters, operations and bytes of activations a layer has."""

from __future__ import annotations

from dataclasses import dataclass

from tightwire.errors import FileError, PlanError

HALF_BYTES = 2  # activations travel and are stored in half precision


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder of equal layers.

    Attributes:
        layers: how many.
        hidden: width.
        heads: of attention.
        seq_len: tokens in a sequence.
        vocabulary: rows of the embedding.
        ffn: width inside the feed-forward part; 4 times the hidden one if not given.
        kv_heads: heads of keys and values (grouped queries); as many as of queries if not given.
        head_size: width of a head; hidden over heads if not given.
        gated: whether the feed-forward part multiplies by a gate (SwiGLU): three matrices in place of two.
        experts: of each layer that has experts; 0: none has.
        experts_per_token: to how many of them a token goes.
        expert_ffn: width inside an expert.
        shared_ffn: width inside the expert that every token goes to, where there is one.
        dense_layers: how many of the layers have no experts.
        attention_parameters: of a layer's attention, where it is not made of four plain matrices.
        tied: whether the embedding serves as the last layer too.
        dropout: whether masks of dropout are stored.
        paper: where it is from.
    """

    layers: int
    hidden: int
    heads: int
    seq_len: int
    vocabulary: int = 51200
    ffn: int = 0
    kv_heads: int = 0
    head_size: int = 0
    gated: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    attention_parameters: int = 0
    tied: bool = True
    dropout: bool = True
    paper: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "seq_len", "vocabulary"):
            if (value := vars(self)[name]) < 1:
                raise PlanError(f"{name}={value}: a transformer has at least 1.")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise PlanError(
                f"experts_per_token={self.experts_per_token}: a token goes to 1 … {self.experts} of the experts."
            )

    @property
    def attention_width(self) -> int:
        """Of all heads of queries together."""
        return self.heads * (self.head_size or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Of all heads of keys together; values have as much."""
        return (self.kv_heads or self.heads) * (self.head_size or self.hidden // self.heads)

    @property
    def attention(self) -> int:
        """Parameters of a layer's attention."""
        return self.attention_parameters or 2 * self.hidden * (self.attention_width + self.kv_width)

    def feed_forward(self, width: int) -> int:
        """Parameters of a feed-forward part of a width."""
        return (3 if self.gated else 2) * self.hidden * width

    @property
    def dense(self) -> int:
        """Parameters of a layer without experts."""
        return self.attention + self.feed_forward(self.ffn or 4 * self.hidden)

    @property
    def expert_layers(self) -> int:
        """How many layers have experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def shared_of_layer(self) -> float:
        """Parameters of a mean layer that are no expert's."""
        if not self.experts:
            return float(self.dense)
        around = self.attention + self.feed_forward(self.shared_ffn) + self.hidden * self.experts
        return (self.expert_layers * around + self.dense_layers * self.dense) / self.layers

    @property
    def experts_of_layer(self) -> float:
        """Parameters of a mean layer's experts together."""
        return self.experts * self.feed_forward(self.expert_ffn) * self.expert_layers / self.layers

    @property
    def active_of_layer(self) -> float:
        """Parameters of a mean layer that one token meets."""
        if not self.experts:
            return self.shared_of_layer
        return self.shared_of_layer + self.experts_of_layer * self.experts_per_token / self.experts

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the logits where they have their own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """About how many in all; norms and biases are left out."""
        return round(self.layers * (self.shared_of_layer + self.experts_of_layer)) + self.embedding

    @property
    def active_parameters(self) -> int:
        """About how many one token meets."""
        return round(self.layers * self.active_of_layer) + self.embedding

    def core_flops(self, causal: bool) -> float:
        """Returns the forward operations of one layer's attention core, for one sequence.

        Args:
            causal: whether those above the diagonal are skipped.
        """
        return 4 * self.seq_len**2 * self.attention_width * (0.5 if causal else 1.0)

    def product_flops(self) -> float:
        """Returns the forward operations of one mean layer's matrix products, for one sequence."""
        return 2 * self.seq_len * self.active_of_layer

    def model_flops(self) -> float:
        """Returns what one sequence needs, forward and backward, nothing done twice.

        As Narayanan et al. 2021 (arXiv:2104.04473) and Korthikanti et al. 2022 count: the whole square of attention.
        """
        logits = 2 * self.seq_len * self.hidden * self.vocabulary
        return 3 * (self.layers * (self.product_flops() + self.core_flops(False)) + logits)

    def unsharded_bytes_per_token(self) -> int:
        """Returns stored activations of a layer that tensor shards all keep unless they share out the sequence.

        Korthikanti et al. 2022, eq. 2: inputs of two norms and two products, and two masks of dropout: 10 h.
        """
        return self.hidden * (8 + (2 if self.dropout else 0))

    def sharded_bytes_per_token(self) -> float:
        """Returns stored activations of a layer that are cut with its heads and its feed-forward part.

        Korthikanti et al. 2022, eq. 2, for any widths: queries, keys, values and their result, and what goes in and out
        of the non-linearity: 24 h with plain attention and four times the width. A gate adds one more.
        """
        attention = 4 * self.attention_width + 4 * self.kv_width
        tensors = 3 if self.gated else 2
        width = self.ffn or 4 * self.hidden
        if self.experts:
            routed = self.experts_per_token * self.expert_ffn + self.shared_ffn
            width = round((self.expert_layers * routed + self.dense_layers * width) / self.layers)
        return attention + HALF_BYTES * tensors * width

    def core_bytes_per_token(self) -> int:
        """Returns what attention stores of its scores where it is not fused: 5 a s, with dropout's mask."""
        return (5 if self.dropout else 4) * self.heads * self.seq_len


def _gpt(layers: int, hidden: int, heads: int) -> Transformer:
    paper = "Narayanan et al. 2021, Efficient large-scale language model training, arXiv:2104.04473, table 1"
    return Transformer(layers=layers, hidden=hidden, heads=heads, seq_len=2048, paper=paper)


def _llama2(layers: int, hidden: int, heads: int, ffn: int, kv_heads: int = 0) -> Transformer:
    return Transformer(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        gated=True,
        seq_len=4096,
        vocabulary=32000,
        tied=False,
        dropout=False,
        paper="Touvron et al. 2023, Llama 2: open foundation and fine-tuned chat models, arXiv:2307.09288",
    )


def _llama(layers: int, hidden: int, heads: int, ffn: int) -> Transformer:
    return Transformer(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=8,
        ffn=ffn,
        gated=True,
        seq_len=8192,
        vocabulary=128256,
        tied=False,
        dropout=False,
        paper="Llama team 2024, The Llama 3 herd of models, arXiv:2407.21783, table 3",
    )


SHAPES: dict[str, Transformer] = {
    "gpt3-1.7b": _gpt(24, 2304, 24),
    "gpt3-3.6b": _gpt(30, 3072, 32),
    "gpt3-7.5b": _gpt(36, 4096, 32),
    "gpt3-18b": _gpt(40, 6144, 48),
    "gpt3-22b": _gpt(48, 6144, 64),
    "gpt3-39b": _gpt(48, 8192, 64),
    "gpt3-76b": _gpt(60, 10240, 80),
    "gpt3-145b": _gpt(80, 12288, 96),
    "gpt3-175b": _gpt(96, 12288, 96),
    "gpt3-310b": _gpt(96, 16384, 128),
    "gpt3-530b": _gpt(105, 20480, 128),
    "gpt3-1t": _gpt(128, 25600, 160),
    "llama2-7b": _llama2(32, 4096, 32, 11008),
    "llama2-13b": _llama2(40, 5120, 40, 13824),
    "llama2-34b": _llama2(48, 8192, 64, 22016, kv_heads=8),
    "llama2-70b": _llama2(80, 8192, 64, 28672, kv_heads=8),
    "llama3-8b": _llama(32, 4096, 32, 14336),
    "llama3-15b": Transformer(
        layers=40,
        hidden=5120,
        heads=40,
        kv_heads=8,
        ffn=17920,
        gated=True,
        seq_len=4096,
        vocabulary=128256,
        tied=False,
        dropout=False,
        paper="KempnerForge, benchmarks/mfu_scaling: a Llama 3 of 14.8 billion parameters",
    ),
    "llama3-70b": _llama(80, 8192, 64, 28672),
    "llama3-405b": _llama(126, 16384, 128, 53248),
    "mixtral-8x7b": Transformer(
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        experts=8,
        experts_per_token=2,
        expert_ffn=14336,
        gated=True,
        seq_len=4096,
        vocabulary=32000,
        tied=False,
        dropout=False,
        paper="Jiang et al. 2024, Mixtral of experts, arXiv:2401.04088, table 1",
    ),
    # Latent attention: queries through 1536, keys and values through 512, 64 of a key rotated; 192 + 128 per head.
    "deepseek-v3": Transformer(
        layers=61,
        hidden=7168,
        heads=128,
        head_size=160,
        attention_parameters=7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168,
        ffn=18432,
        experts=256,
        experts_per_token=8,
        expert_ffn=2048,
        shared_ffn=2048,
        dense_layers=3,
        gated=True,
        seq_len=4096,
        vocabulary=129280,
        tied=False,
        dropout=False,
        paper="DeepSeek-AI 2024, DeepSeek-V3 technical report, arXiv:2412.19437, section 4.2",
    ),
}


def transformer(name: str) -> Transformer:
    """Returns a transformer by name.

    >>> [round(transformer(name).parameters / 1e9, 1) for name in ("llama3-8b", "mixtral-8x7b", "deepseek-v3")]
    [8.0, 46.7, 671.0]

    Raises:
        FileError: an unknown name; the known ones are listed.
    """
    if name.lower() not in SHAPES:
        raise FileError(f"{name!r} is no known transformer; known: {', '.join(SHAPES)}.")
    return SHAPES[name.lower()]
