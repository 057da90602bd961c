"""The Hugging Face Trainer, compressed: torchrun --nproc-per-node 2 examples/with_trainer.py"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from tightwire.integrations.trainer import compress

rows = [{"input_ids": torch.randint(0, 100, (8,)), "labels": i % 2} for i in range(64)]
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    use_cpu=True,
    ddp_backend="gloo",
    max_steps=4,
    report_to=[],
    save_strategy="no",
)
trainer = Trainer(model, arguments, train_dataset=rows)
hook = compress(trainer, "bsp/allreduce/powersgd:2+ef")
trainer.train()
if hook.hook is not None and trainer.is_world_process_zero():
    print(f"sent {hook.hook.sent_bytes} bytes in {hook.hook.rounds} rounds")
