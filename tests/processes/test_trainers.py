"""Trainers that people use: bsp trains as the library's own DDP, compressed plans train, checkpoints resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers import run_processes

SETUP = """
import copy, glob, logging, pathlib, warnings
warnings.simplefilter("ignore")
import tightwire as tw
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
folder = pathlib.Path(os.environ["FOLDER"])

def data(n=64):
    g = torch.Generator().manual_seed(7)
    return torch.randn(n, 12, generator=g), torch.randn(n, 3, generator=g)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))

def values(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])

def apart(a, b):
    return float((values(a) - values(b)).abs().max())
"""

ACCELERATE = """
import accelerate.state
from accelerate import Accelerator
from tightwire.integrations.accelerate import prepare

def train(prepared, steps, accelerator, close=True, run=None):
    model, optimizer, loader = prepared
    batches = [batch for _ in range(3) for batch in loader]
    for x, y in batches[steps.start : steps.stop]:
        with accelerator.accumulate(model):
            loss = (model(x) - y).square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model

def parts():
    model = net()
    loader = DataLoader(TensorDataset(*data()), batch_size=8)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05), loader

found = {}
half = [Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2) for _ in range(2)]
stock = half[0].unwrap_model(train(half[0].prepare(*parts()), range(4), half[0]))
*prepared, run = prepare(half[1], *parts(), plan="bsp")
with run:
    found["bf16"] = [apart(train(prepared, range(4), half[1]), stock), 0.0, 0.0]
accelerate.state.AcceleratorState._reset_state(True)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
stock = train(accelerator.prepare(*parts()), range(8), accelerator)
stock = accelerator.unwrap_model(stock)
for plan in ("bsp", "bsp/allreduce/topk:0.3+ef", "local:2/allreduce/int8+ef"):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    *prepared, run = prepare(accelerator, *parts(), plan=plan)
    with run:
        train(prepared, range(4), accelerator)
        accelerator.save_state(str(folder / plan.replace("/", "_").replace(":", "_")), safe_serialization=False)
        model = train(prepared, range(4, 8), accelerator)
    copied = copy.deepcopy(model)
    again = Accelerator(cpu=True, gradient_accumulation_steps=2)
    *prepared, run = prepare(again, *parts(), plan=plan)
    with run:
        again.load_state(str(folder / plan.replace("/", "_").replace(":", "_")))
        resumed = train(prepared, range(4, 8), again)
    found[plan] = [apart(model, stock), apart(model, resumed), apart(model, copied)]
answer(found)
"""

LIGHTNING = """
os.environ |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
os.environ["LOCAL_RANK"] = str(rank)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning.pytorch as pl
from tightwire.integrations.lightning import TightwireStrategy

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, number):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def validation_step(self, batch, number):
        x, y = batch
        self.log("loss", (self.net(x) - y).square().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)

def fit(strategy, steps, save=None, checkpoint=None):
    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=steps, accumulate_grad_batches=2,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )
    rows = TensorDataset(*data())
    loader = lambda: DataLoader(rows, batch_size=8, sampler=DistributedSampler(rows, 2, rank, shuffle=False))
    trainer.fit(module, loader(), loader(), ckpt_path=checkpoint)
    if save:
        trainer.save_checkpoint(save)
    return module

found = {}
stock = fit("ddp", 4)
for number, plan in enumerate(("bsp", "bsp/allreduce/topk:0.3+ef", "local:2/allreduce/int8+ef")):
    path = str(folder / f"{number}.ckpt")
    strategy = lambda: TightwireStrategy(plan=plan)
    fit(strategy(), 2, path)
    whole, resumed = fit(strategy(), 4), fit(strategy(), 4, checkpoint=path)
    found[plan] = [apart(whole, stock), apart(whole, resumed)]
assert apart(fit("tightwire", 1), fit("ddp", 1)) < 1e-6

class Pair(pl.LightningModule):
    # Two optimizers, stepped by hand.

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(12, 3), nn.Linear(12, 3)
        self.automatic_optimization = False

    def training_step(self, batch, number):
        x, y = batch
        for optimizer, part in zip(self.optimizers(), (self.a, self.b)):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward((part(x) - y).square().mean())
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return torch.optim.SGD(self.a.parameters(), lr=0.1), torch.optim.Adam(self.b.parameters(), lr=0.05)

def averaged():
    return [pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]

ways = {
    "by hand": (Pair, lambda: {"max_steps": 4}),
    "fp16": (Module, lambda: {"max_steps": 2, "precision": "16-mixed"}),
    "swa": (Module, lambda: {"max_epochs": 2, "callbacks": averaged(), "limit_val_batches": 1}),
}
for way, (make, options) in ways.items():
    ends = []
    for strategy in ("ddp_find_unused_parameters_true", TightwireStrategy(plan="bsp")):
        module, rows = make(), TensorDataset(*data())
        pl.Trainer(
            accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options(),
        ).fit(module, DataLoader(rows, batch_size=8, sampler=DistributedSampler(rows, 2, rank, shuffle=False)))
        ends.append(module)
    found[way] = [apart(*ends), 0.0]
answer(found)

class Dies(Module):
    def training_step(self, batch, number):
        if rank == 1 and number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, number)
Module = Dies
try:
    fit(TightwireStrategy(plan="bsp"), 4)
except tw.TightwireError as error:
    answer(found | {"dead": list(error.ranks)})
"""

TRAINER = """
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from tightwire.integrations.trainer import compress

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        return {"input_ids": torch.randint(0, 50, (6,), generator=g), "labels": i % 2}

def model():
    transformers.set_seed(0)
    return BertForSequenceClassification(BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))

def train(name, plan=None, steps=6, resume=None, times=1):
    arguments = TrainingArguments(
        output_dir=str(folder / name), use_cpu=True, ddp_backend="gloo", per_device_train_batch_size=4,
        max_steps=steps, save_steps=3, save_strategy="steps", report_to=[], disable_tqdm=True, logging_strategy="no",
        learning_rate=0.01, seed=0, lr_scheduler_type="constant")
    trainer = Trainer(model(), arguments, train_dataset=Rows())
    hook = compress(trainer, plan) if plan else None
    for _ in range(times):
        trainer.train(resume_from_checkpoint=resume)
    if hook is not None:
        assert hook.hook.sent_bytes == hook.hook.planned_bytes > 0
    return trainer.model

found = {}
stock = train("stock")
# A method whose messages do not depend on how DDP cuts its buckets, which it does anew after its first step.
for plan in ("bsp", "bsp/allreduce/powersgd:2+ef"):
    name = plan.replace("/", "_")
    whole = train(name, plan)
    dist.barrier()
    again = train(name + "_again", plan, resume=str(folder / name / "checkpoint-3"))
    found[plan] = [apart(whole, stock), apart(whole, again)]
found["twice"] = [apart(train("stock2", times=2), train("bsp2", "bsp", times=2)), 0.0]
answer(found)
"""


def trained(tmp_path: Path, script: str, library: str, dead: int | None = None) -> dict[str, list[float]]:
    pytest.importorskip(library)
    ended = run_processes(
        2,
        SETUP + script,
        env={
            "FOLDER": str(tmp_path),
            "ACCELERATE_USE_CPU": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",
        },
        timeout_s=150,
        preload=(library,),
        check=dead is None,
    )
    found: dict[str, list[float]] = ended[0].answer
    if dead is not None:
        assert [end.code for end in ended] == [0, -9], ended[0].err
        assert found.pop("dead") == [dead]
    assert found == ended[1].answer
    return found


@pytest.mark.timeout(200)
def test_accelerate(tmp_path: Path) -> None:
    found = trained(tmp_path, ACCELERATE, "accelerate")
    assert found["bsp"][0] < 1e-6
    assert found["bf16"][0] < 1e-6
    for _, resumed, copied in found.values():
        assert resumed == copied == 0


@pytest.mark.timeout(200)
def test_lightning(tmp_path: Path) -> None:
    found = trained(tmp_path, LIGHTNING, "lightning", dead=1)
    assert found["bsp"][0] < 1e-6
    assert all(resumed == 0 for _, resumed in found.values())
    assert all(found[way][0] < 1e-6 for way in ("by hand", "fp16", "swa"))


@pytest.mark.timeout(200)
def test_hugging_face_trainer(tmp_path: Path) -> None:
    found = trained(tmp_path, TRAINER, "transformers")
    assert found["bsp"][0] < 1e-6
    assert found["twice"][0] < 1e-6
    assert all(resumed == 0 for _, resumed in found.values())
