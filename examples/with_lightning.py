"""Lightning, averaging every 4 steps: torchrun --nproc-per-node 2 examples/with_lightning.py"""

import os

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tightwire.integrations.lightning import TightwireStrategy


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        x, y = batch
        return (self.net(x) - y).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


x = torch.randn(256, 32)
workers, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
trainer = pl.Trainer(
    accelerator="cpu",
    devices=here,
    num_nodes=workers // here,
    strategy=TightwireStrategy(plan="local:4/allreduce/int8+ef"),
    max_epochs=1,
    logger=False,
    enable_checkpointing=False,
)
trainer.fit(Regression(), DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16))
