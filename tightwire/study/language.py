"""The source of Python's own library, byte by byte, by a transformer."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from tightwire.study.task import Place, Task, same_model
from tightwire.workloads.text import Corpus, draw, standard_library
from tightwire.workloads.transformer import ByteTransformer

HELDOUT_SEQUENCES = 128


@final
@dataclass(frozen=True)
class Language(Task):
    """Predicts the next byte; held-out files are never trained on.

    Attributes:
        name: in results.
        steps: of training.
        sequences: per worker and step.
        width: of the transformer.
        layers: of the transformer.
        length: of a sequence, in bytes.
    """

    metric: ClassVar[str] = "held-out loss"
    higher_is_better: ClassVar[bool] = False
    guess: ClassVar[float] = math.log(256)

    name: str = "text"
    steps: int = 800
    sequences: int = 4
    width: int = 48
    layers: int = 1
    length: int = 32

    def replica(self, place: Place) -> LanguageReplica:
        """Builds one worker's replica."""
        return LanguageReplica(place, self)


class LanguageReplica:
    """A transformer and a share of the text."""

    def __init__(self, place: Place, task: Language) -> None:
        self.model = same_model(
            lambda: ByteTransformer(width=task.width, layers=task.layers, heads=4, length=task.length),
            place.seed,
        )
        corpus = _corpus()
        self._text = share(corpus.train, place)
        self._task = task
        self._generator = torch.Generator().manual_seed(place.stream)
        self._heldout = draw(
            corpus.heldout,
            sequences=HELDOUT_SEQUENCES,
            length=task.length,
            generator=torch.Generator().manual_seed(0),
        )

    def batch(self) -> tuple[Tensor, ...]:
        """Draws passages: (sequences, length + 1) int64."""
        task = self._task
        return (draw(self._text, sequences=task.sequences, length=task.length, generator=self._generator),)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Returns the cross-entropy in nats per byte."""
        loss: Tensor = model(*batch)
        return loss

    @torch.no_grad()
    def judge(self) -> float:
        """Returns the held-out cross-entropy in nats per byte."""
        return float(self.model(self._heldout))


@functools.cache
def _corpus() -> Corpus:
    return standard_library()


def share(text: Tensor, place: Place) -> Tensor:
    """Returns what one worker draws from: all the text, or, `unlike`, files of its own (they lie in their order)."""
    return text if place.split == "alike" else text.tensor_split(place.workers)[place.rank]
