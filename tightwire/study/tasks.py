"""What studies train: digits by a convolutional net, and text by a transformer.

Models and data are in `digits` and `language`, which import torch; whoever only names a study need not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.study.task import Place, Replica, Task


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
