"""How messages leave a device: named here, where neither clusters nor transports need the other."""

from __future__ import annotations

from typing import Literal

# By NCCL, by Gloo behind pinned host memory, or by NCCL inside nodes and Gloo across; `transport.reach` chooses.
Over = Literal["auto", "nccl", "pinned", "nccl-inside"]
