"""Images with noise that is drawn anew every time, so that none is learnt by heart: digits at 16 × 16 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightwire.study.digits import read, share
from tightwire.study.task import Place
from tightwire.workloads.nets import SIDE


class ImageReplica:
    """A network and a share of the images, judged by its loss."""

    def __init__(
        self,
        model: nn.Module,
        place: Place,
        images: int,
        *,
        noise: float,
        shift: int = 0,
        restores: bool = False,
    ) -> None:
        """Takes the network.

        Args:
            model: takes images (n, 1, 16, 16).
            place: where it trains.
            images: in a batch.
            noise: the standard deviation of what is added to every pixel, whose values are in [0, 1].
            shift: by how many pixels at most a batch is shifted, each way.
            restores: whether it learns to restore the clean images instead of classifying them.
        """
        self.model, self._num_images = model, images
        self._noise, self._shift, self._restores = noise, shift, restores
        data = read()
        mine = share(data.train_labels, place)
        self._images, self._labels = _enlarged(data.train_images[mine]), data.train_labels[mine]
        self._generator = torch.Generator().manual_seed(place.stream)
        clean = _enlarged(data.heldout_images)
        self._heldout = (self._spoiled(clean, torch.Generator().manual_seed(0)), clean, data.heldout_labels)

    def batch(self) -> tuple[Tensor, ...]:
        """Draws images (n, 1, 16, 16) spoiled and clean, and labels (n,)."""
        drawn = torch.randint(len(self._labels), (self._num_images,), generator=self._generator)
        clean = self._images[drawn]
        return self._spoiled(clean, self._generator), clean, self._labels[drawn]

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Returns the cross-entropy in nats, or the squared error per pixel."""
        spoiled, clean, labels = batch
        found = model(spoiled)
        return (
            functional.mse_loss(found, clean.flatten(1))
            if self._restores
            else functional.cross_entropy(found, labels)
        )

    @torch.no_grad()
    def judge(self) -> float:
        """Returns the metric on held-out images, with the running statistics of normalisation."""
        was_training = self.model.training
        self.model.eval()
        metric = self._metric(self._heldout)
        self.model.train(was_training)
        return metric

    def _metric(self, heldout: tuple[Tensor, ...]) -> float:
        return float(self.loss(self.model, heldout))

    def _spoiled(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shifts all images of a batch alike, and adds noise."""
        down, right = torch.randint(-self._shift, self._shift + 1, (2,), generator=generator).tolist()
        noise = torch.randn(images.shape, generator=generator)
        return images.roll((down, right), (2, 3)) + self._noise * noise


class RecognisingReplica(ImageReplica):
    """Judged by the share of held-out images that it recognises."""

    def _metric(self, heldout: tuple[Tensor, ...]) -> float:
        spoiled, _, labels = heldout
        return float((self.model(spoiled).argmax(1) == labels).float().mean())


def _enlarged(images: Tensor) -> Tensor:
    return functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
