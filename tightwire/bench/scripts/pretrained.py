"""Tiny models of the Transformers library, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tightwire.bench.scripts.replicas import Replicas

WORDS = 40
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": WORDS}


def _train(
    replicas: Replicas, model: nn.Module, inputs: Callable[[Tensor], dict[str, Tensor]], **options: bool
) -> tuple[nn.Module, Tensor]:
    optimizer = AdamW(model.parameters(), lr=5e-3)
    model.train()
    with replicas.of(model, optimizer, **options) as net:
        for text in replicas.tokens(WORDS, 2, 8):
            optimizer.zero_grad()
            loss = net(**inputs(text)).loss
            loss.backward()
            replicas.wait()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model, loss


def _following(text: Tensor) -> dict[str, Tensor]:
    return {"input_ids": text, "labels": text}


def gpt2(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """A causal model with a tied head; no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=2, n_head=2, **drops)
    return _train(replicas, GPT2LMHeadModel(config), _following)


def bert(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """A masked model, whose pooler takes no part."""
    from transformers import BertConfig, BertForMaskedLM

    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return _train(replicas, BertForMaskedLM(BertConfig(**SMALL, intermediate_size=32, **drops)), _following)


def t5(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """An encoder and a decoder on one embedding."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return _train(replicas, T5ForConditionalGeneration(config), _following)


def llama(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """A causal model with grouped heads, and gradient checkpointing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=32, num_key_value_heads=1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return _train(replicas, model, _following)


def mixtral(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """A mixture of experts: which take part, differs between workers and steps."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**SMALL, intermediate_size=32, num_key_value_heads=1, num_local_experts=4)
    return _train(replicas, MixtralForCausalLM(config), _following, unused=True)
