"""The source of Python's own library, byte by byte, by a transformer."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from tightwire.study.task import Place, same_model
from tightwire.workloads.text import Corpus, draw, standard_library
from tightwire.workloads.transformer import ByteTransformer

HELDOUT_SEQUENCES = 128


class LanguageReplica:
    """A transformer and a share of the text."""

    def __init__(self, place: Place, *, sequences: int, width: int, layers: int, length: int) -> None:
        self.model = same_model(
            lambda: ByteTransformer(width=width, layers=layers, heads=4, length=length),
            place.seed,
        )
        corpus = _corpus()
        self._text = share(corpus.train, place)
        self._sequences, self._length = sequences, length
        self._generator = torch.Generator().manual_seed(place.stream)
        self._heldout = draw(
            corpus.heldout,
            sequences=HELDOUT_SEQUENCES,
            length=length,
            generator=torch.Generator().manual_seed(0),
        )

    def batch(self) -> tuple[Tensor, ...]:
        """Draws passages: (sequences, length + 1) int64."""
        return (draw(self._text, sequences=self._sequences, length=self._length, generator=self._generator),)

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
