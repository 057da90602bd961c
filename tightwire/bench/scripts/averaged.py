"""Averages of the model along the way: an exponential one, and SWA with its own schedule."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from tightwire.bench.scripts.replicas import Replicas


def ema_and_swa(replicas: Replicas) -> tuple[nn.Module, Tensor]:
    """Trains, and returns the averages beside the model."""
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    swa, schedule = AveragedModel(model), SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)
    with replicas.of(model, optimizer) as net:
        for step, batch in enumerate(replicas.batches(8, 10)):
            loss = mse_loss(net(batch[:, :6]), batch[:, 6:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with replicas.evaluating():  # where replicas differ, averages of them would too
                ema.update_parameters(model)
                if step >= 2:
                    swa.update_parameters(model)
            if step >= 2:
                schedule.step()
    return nn.ModuleList([model, ema.module, swa.module]), loss
