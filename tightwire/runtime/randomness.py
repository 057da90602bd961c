"""The state of every generator of random numbers that a training script draws from, unless it made its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tightwire.devices import device_named

# PyTorch reads its generator's state under a lock of its own, and may hand over the interpreter there: a second thread
# that then reads it holds the interpreter and waits for that lock, and nothing goes on. Ranks may be threads.
_reading = threading.Lock()


def random_state(at: torch.device) -> dict[str, Any]:
    """Returns what PyTorch (host and device), numpy and Python draw from, as plain values and tensors.

    Args:
        at: the device where the model is.
    """
    name, keys, *place = np.random.get_state(legacy=True)
    with _reading:
        host = torch.get_rng_state()
    return {
        "torch": host,
        "device": device_named(at).random_state(at),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *place],
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any], at: torch.device) -> None:
    """Has the same numbers drawn as after `random_state`."""
    with _reading:
        torch.set_rng_state(state["torch"])
    device_named(at).set_random_state(at, state["device"])
    name, keys, *place = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *place))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
