"""Ray Train, compressed, and going on after a failure: python examples/with_ray.py"""

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn

import tightwire as tw
from tightwire.integrations.ray import report, resume


def train(settings: dict[str, object]) -> None:
    tw.init()
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    with tw.attach(model, optimizer, plan=settings["plan"]) as run:
        begin = resume(run, model, optimizer).get("epoch", -1) + 1
        for epoch in range(begin, 2):
            for _ in range(8):
                x = torch.randn(16, 32)
                optimizer.zero_grad()
                loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
                loss.backward()
                optimizer.step()
            report({"loss": loss.item()}, run, model, optimizer, epoch=epoch)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    trainer = TorchTrainer(
        train,
        train_loop_config={"plan": "bsp/allreduce/int8+ef"},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=1)),
    )
    print(f"loss {trainer.fit().metrics['loss']:.3f}")
