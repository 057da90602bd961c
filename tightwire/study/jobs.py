"""Twelve jobs of many kinds, to be trained for an equal time: what holds on all of them is not one model's accident.

Text is the source of Python's own library. Images are scikit-learn's digits, at 16 × 16 pixels, shifted and noisy anew
every time that they are drawn, so that they are not learnt by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from tightwire.study.digits import CLASSES
from tightwire.study.images import ImageReplica
from tightwire.study.language import share
from tightwire.study.settings import TrainingSettings
from tightwire.study.task import Place, Replica, Task, same_model
from tightwire.workloads.nets import (
    SIDE,
    ByteConvolution,
    ByteNgrams,
    ByteRecurrent,
    ByteWindow,
    VisionTransformer,
    autoencoder,
    perceptron,
    plain_net,
    residual_net,
)
from tightwire.workloads.text import Corpus, draw, standard_library
from tightwire.workloads.transformer import ByteTransformer

HELDOUT_SEQUENCES = 64
LENGTH = 64
NOISE, SHIFT = 0.25, 2
Source = Literal["text", "images", "pixels"]


@final
@dataclass(frozen=True)
class TimedJob(Task):
    """A network, what it learns, and with which optimizer.

    Attributes:
        name: in results and on the command line.
        net: builds the network.
        source: what it learns: the next byte of text, the digit on an image, or the image without its noise (pixels).
        batch: sequences or images per worker and step.
        settings: of the optimizer; its rate stays, for how many steps there will be is not known.
        steps: unused: jobs train for a time.
    """

    metric: ClassVar[str] = "held-out loss"
    higher_is_better: ClassVar[bool] = False
    guess: ClassVar[float] = math.inf  # pixels are no outcomes

    name: str
    net: Callable[[], nn.Module] = field(compare=False)
    source: Source
    batch: int
    settings: TrainingSettings
    steps: int = 1

    def replica(self, place: Place) -> Replica:
        """Builds one worker's replica."""
        model = same_model(self.net, place.seed)
        if self.source == "text":
            return TextReplica(model, place, self.batch)
        restores = self.source == "pixels"
        return ImageReplica(model, place, self.batch, noise=NOISE, shift=SHIFT, restores=restores)


class TextReplica:
    """A network and a share of the text."""

    def __init__(self, model: nn.Module, place: Place, sequences: int) -> None:
        self.model, self._sequences = model, sequences
        corpus = _corpus()
        self._text = share(corpus.train, place)
        self._generator = torch.Generator().manual_seed(place.stream)
        fixed = torch.Generator().manual_seed(0)
        self._heldout = draw(corpus.heldout, sequences=HELDOUT_SEQUENCES, length=LENGTH, generator=fixed)

    def batch(self) -> tuple[Tensor, ...]:
        """Draws passages: (sequences, length + 1) int64."""
        return (draw(self._text, sequences=self._sequences, length=LENGTH, generator=self._generator),)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Returns the cross-entropy in nats per byte."""
        loss: Tensor = model(*batch)
        return loss

    @torch.no_grad()
    def judge(self) -> float:
        """Returns the same on held-out text."""
        return float(self.model(self._heldout))


_CORPUS: list[Corpus] = []


def _corpus() -> Corpus:
    if not _CORPUS:
        _CORPUS.append(standard_library())
    return _CORPUS[0]


def _adam(lr: float) -> TrainingSettings:
    return TrainingSettings(optimizer="adamw", lr=lr, decays=False)


def _sgd(lr: float) -> TrainingSettings:
    return TrainingSettings(optimizer="sgd", lr=lr, momentum=0.9, decays=False)


def _job(
    name: str, net: Callable[[], nn.Module], source: Source, batch: int, s: TrainingSettings
) -> TimedJob:
    return TimedJob(name=name, net=net, source=source, batch=batch, settings=s)


JOBS: dict[str, TimedJob] = {
    job.name: job
    for job in (
        # Of the size of gradients, and of the compute between them, these differ by factors of tens.
        _job("lstm", lambda: ByteRecurrent(nn.LSTM, width=512, embedded=256, layers=2), "text", 4, _adam(2e-3)),
        _job("gru", lambda: ByteRecurrent(nn.GRU, width=384, embedded=128, layers=1), "text", 8, _adam(2e-3)),
        _job("transformer", ByteTransformer, "text", 4, _adam(1e-3)),
        _job("transformer-small", lambda: ByteTransformer(width=128, layers=3), "text", 8, _sgd(0.1)),
        _job("convolution", lambda: ByteConvolution(width=192, layers=4), "text", 4, _adam(1e-3)),
        _job("window", lambda: ByteWindow(window=16, embedded=48, width=1536), "text", 4, _adam(1e-3)),
        _job("ngrams", lambda: ByteNgrams(rows=40_000, width=64), "text", 8, _adam(3e-3)),
        _job("residual", lambda: residual_net(CLASSES), "images", 16, _sgd(0.05)),
        _job("plain-conv", lambda: plain_net(CLASSES), "images", 16, _sgd(0.02)),
        _job("vision-transformer", lambda: VisionTransformer(CLASSES), "images", 16, _adam(1e-3)),
        _job("perceptron", lambda: perceptron(SIDE * SIDE, CLASSES), "images", 32, _sgd(0.05)),
        _job("autoencoder", autoencoder, "pixels", 32, _adam(1e-3)),
    )
}  # fmt: skip
