"""Handwritten digits by a convolutional net: scikit-learn ships 1,797 images of 8 × 8, so nothing is downloaded."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightwire.errors import LabError
from tightwire.study.task import Place, same_model

HELDOUT = 597
CLASSES = 10


class DigitsReplica:
    """A convolutional net and a share of the images."""

    def __init__(self, place: Place, num_images: int) -> None:
        self.model = same_model(net, place.seed)
        data = read()
        mine = share(data.train_labels, place)
        self._images, self._labels = data.train_images[mine], data.train_labels[mine]
        self._heldout = data
        self._num_images = num_images
        self._generator = torch.Generator().manual_seed(place.stream)

    def batch(self) -> tuple[Tensor, ...]:
        """Draws images (n, 1, 8, 8) and labels (n,)."""
        drawn = torch.randint(len(self._labels), (self._num_images,), generator=self._generator)
        return self._images[drawn], self._labels[drawn]

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Returns the cross-entropy in nats."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    @torch.no_grad()
    def judge(self) -> float:
        """Returns the share of held-out images that are recognised."""
        found = self.model(self._heldout.heldout_images).argmax(1)
        return float((found == self._heldout.heldout_labels).float().mean())


def net() -> nn.Module:
    """Builds the net: 38,282 parameters, 0.15 MB of gradients."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


@dataclass(frozen=True)
class SplitImages:
    """Images (n, 1, 8, 8) float32 in [0, 1] and labels (n,) int64."""

    train_images: Tensor
    train_labels: Tensor
    heldout_images: Tensor
    heldout_labels: Tensor


@functools.cache
def read() -> SplitImages:
    """Reads the images; the same ones are held out every time.

    Raises:
        LabError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise LabError(
            "the digits come with scikit-learn, which is not installed: pip install 'tightwire[study]', "
            "or study the text alone with --tasks text."
        ) from error
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return SplitImages(x[HELDOUT:], y[HELDOUT:], x[:HELDOUT], y[:HELDOUT])


def share(labels: Tensor, place: Place) -> Tensor:
    """Returns the indices of one worker's images: every n-th, or, `unlike`, neighbours in the order of classes.

    >>> share(torch.tensor([1, 0, 1, 0]), Place(rank=0, workers=2, split="unlike"))
    tensor([1, 3])
    """
    if place.split == "alike":
        return torch.arange(place.rank, len(labels), place.workers)
    return labels.argsort(stable=True).tensor_split(place.workers)[place.rank]
