"""One agreement, as all buckets and all ranks see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is common to all buckets in one agreement, and to all ranks.

    Attributes:
        number: of rounds begun, this one included; counted on from a checkpoint.
        seed: of stochastic codecs.
        scale: values are this many times their true size (AMP loss scaling).
    """

    number: int = 1
    seed: int = 0
    scale: float = 1.0
