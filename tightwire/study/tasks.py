"""What studies train: digits by a convolutional net, noisy images by a residual one, and text by a transformer.

Models and data are in `digits`, `images` and `language`, which import torch; whoever only names a study need not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.study.task import Place, Replica, Task, same_model


@final
@dataclass(frozen=True)
class Digits(Task):
    """Classifies digits; 1,200 images to learn from, 597 to be judged by.

    Attributes:
        name: in results.
        steps: of training.
        images: per worker and step.
    """

    metric: ClassVar[str] = "held-out accuracy"
    higher_is_better: ClassVar[bool] = True
    guess: ClassVar[float] = 1 / 10  # ten digits

    name: str = "digits"
    steps: int = 160
    images: int = 16

    def replica(self, place: Place) -> Replica:
        """Builds one worker's replica."""
        from tightwire.study.digits import DigitsReplica

        return DigitsReplica(place, self.images)


@final
@dataclass(frozen=True)
class Images(Task):
    """Classifies digits at twice the size, under noise that is drawn anew, by a residual net with batch normalisation.

    42,570 parameters. Noise is of the size of what it hides, so that no image is learnt by heart.

    Attributes:
        name: in results.
        steps: of training.
        images: per worker and step.
        width: of the net, in channels.
        blocks: of the net.
        noise: the standard deviation of what is added to a pixel.
    """

    metric: ClassVar[str] = "held-out accuracy"
    higher_is_better: ClassVar[bool] = True
    guess: ClassVar[float] = 1 / 10

    name: str = "images"
    steps: int = 300
    images: int = 16
    width: int = 32
    blocks: int = 2
    noise: float = 0.5

    def replica(self, place: Place) -> Replica:
        """Builds one worker's replica."""
        from tightwire.study.digits import CLASSES
        from tightwire.study.images import RecognisingReplica
        from tightwire.workloads.nets import residual_net

        net = same_model(lambda: residual_net(CLASSES, width=self.width, blocks=self.blocks), place.seed)
        return RecognisingReplica(net, place, self.images, noise=self.noise)


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

    def replica(self, place: Place) -> Replica:
        """Builds one worker's replica."""
        from tightwire.study.language import LanguageReplica

        return LanguageReplica(
            place, sequences=self.sequences, width=self.width, layers=self.layers, length=self.length
        )
