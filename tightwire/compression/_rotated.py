"""What rotated quantisers share: blocks filled up to a power of two, and their norms summed in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tightwire import kernels
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

# A shorter block is filled up with zeros to so many: rotated, fewer elements are not nearly normal.
LEAST = 128
MOST = 1 << 16


def check_rotated_block(name: str, block: int) -> None:
    """Checks how many elements are rotated together.

    Raises:
        PlanError: not a power of two, or unreasonable.
    """
    if not LEAST <= block <= MOST or block & (block - 1):
        raise PlanError(
            f"{name} cannot rotate blocks of {block}: give a power of two from {LEAST} to {MOST}."
        )


def padded(numel: int, block: int) -> int:
    """Returns of how many elements blocks are made: the last one is filled up to a power of two.

    >>> [padded(numel, 1024) for numel in (0, 1, 1024, 1025, 1500)]
    [0, 128, 1024, 1152, 1536]
    """
    rest = numel % block
    return numel - rest + (max(LEAST, 1 << (rest - 1).bit_length()) if rest else 0)


def num_rows(numel: int, block: int) -> int:
    """Returns how many blocks there are."""
    return -(-numel // block)


def rows_of(flat: Tensor, block: int) -> list[tuple[int, Tensor]]:
    """Returns whole blocks as rows, and a shorter last one, each with the number of its first row; shares memory."""
    whole = flat.numel() // block
    parts = [(0, flat[: whole * block].view(-1, block)), (whole, flat[whole * block :].view(1, -1))]
    return [(first, rows) for first, rows in parts if rows.numel()]


def row_sums(rows: Tensor) -> Tensor:
    """Returns the sum of each row, (rows, 1), by folding halves, an order that every device follows."""
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        rows = rows[:, :half] + rows[:, half:]
    return rows


def filled(x: Tensor, block: int) -> Tensor:
    """Returns `x` in float32 scratch memory, filled up with zeros."""
    import torch

    y = kernels.scratch_tensor("filled", padded(x.numel(), block), torch.float32, x.device)
    y[: x.numel()].copy_(x)
    y[x.numel() :] = 0
    return y


def pack_planes(codes: Tensor, bits: int) -> Tensor:
    """Returns integers of so many bits as planes of one bit, eight elements of a plane to a byte.

    Args:
        codes: (n,) of any integer dtype; n is a multiple of 8.
        bits: of each.
    """
    import torch

    rows = codes.view(-1, 8)
    shifts = torch.arange(8, device=codes.device, dtype=torch.uint8)
    planes = [
        ((rows >> plane & 1).to(torch.uint8) << shifts).sum(1, dtype=torch.uint8) for plane in range(bits)
    ]
    return torch.cat(planes)


def unpack_planes(packed: Tensor, bits: int) -> Tensor:
    """Returns the integers of planes, (n,) int32."""
    import torch

    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    found = torch.zeros(packed.numel() // bits, 8, dtype=torch.int32, device=packed.device)
    for plane, bytes_of_plane in enumerate(packed.view(bits, -1)):
        found |= (bytes_of_plane[:, None] >> shifts & 1).int() << plane
    return found.flatten()


# The means of a normal element's magnitude within each of 2^(bits − 1) cells, such that the cells' ends are midway
# between them (Lloyd 1982; Max 1960), and what rounding to them loses of the square.
CENTROIDS: dict[int, tuple[float, ...]] = {
    1: (0.7978846,),
    2: (0.45278, 1.5104176),
    3: (0.2450942, 0.7560053, 1.3439093, 2.1519457),
    4: (0.128395, 0.3880483, 0.6567591, 0.9423405, 1.2562312, 1.6180464, 2.0690172, 2.7325896),
}
DISTORTION = {1: 0.3633802, 2: 0.1174818, 3: 0.0345478, 4: 0.009501}


@kernels.per_thread
def centroids(bits: int, device: object) -> tuple[Tensor, Tensor]:
    """Returns the centroids of magnitudes and the ends of their cells, float32, ascending."""
    import torch

    means = torch.tensor(CENTROIDS[bits], dtype=torch.float32, device=device)  # type: ignore[arg-type]
    return means, (means[1:] + means[:-1]) / 2
