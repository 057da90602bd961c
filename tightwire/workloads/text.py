"""Real text that every machine has: the source of Python's own standard library, as bytes."""

from __future__ import annotations

import pathlib
import sysconfig
from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_BYTES = 8 * 2**20
HELDOUT_BYTES = 2**18


@dataclass(frozen=True)
class Corpus:
    """Text to learn from and text to be judged by; no file is in both.

    Attributes:
        train: (num_bytes,) uint8.
        heldout: (num_bytes,) uint8.
    """

    train: Tensor
    heldout: Tensor


def standard_library(train_bytes: int = TRAIN_BYTES, heldout_bytes: int = HELDOUT_BYTES) -> Corpus:
    """Reads the standard library's modules in alphabetical order, every tenth into the held-out part."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return Corpus(
        train=_join([f for i, f in enumerate(files) if i % 10], train_bytes),
        heldout=_join(files[::10], heldout_bytes),
    )


def _join(files: list[pathlib.Path], most_bytes: int) -> Tensor:
    text = b"".join(file.read_bytes() for file in files)[:most_bytes]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def draw(text: Tensor, *, sequences: int, length: int, generator: torch.Generator) -> Tensor:
    """Draws random passages: (sequences, length + 1) int64, each byte's successor being its target."""
    starts = torch.randint(len(text) - length, (sequences, 1), generator=generator)
    return text[starts + torch.arange(length + 1)].long()
