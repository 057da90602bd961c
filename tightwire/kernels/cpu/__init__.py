"""Kernels for processors: numba loops over flat memory, compiled once per machine and cached on disk.

A file holds the calls of a theme, which take tensors; the private one of the same name holds its loops.
"""

from __future__ import annotations

from tightwire.kernels.cpu.blocks import scatter_blocks, select_blocks
from tightwire.kernels.cpu.cosines import decode_cosines, encode_cosines
from tightwire.kernels.cpu.entropy import decode_entropy, encode_entropy
from tightwire.kernels.cpu.fixed import decode_fixed, encode_fixed, largest_bits
from tightwire.kernels.cpu.floats import decode_fp8, decode_powers, encode_fp8, encode_powers
from tightwire.kernels.cpu.hadamard import rotate
from tightwire.kernels.cpu.halves import decode_half, encode_half
from tightwire.kernels.cpu.planes import join_planes, split_planes
from tightwire.kernels.cpu.sampling import sample_by_magnitude, shared_indices
from tightwire.kernels.cpu.signs import decode_signs, encode_signs
from tightwire.kernels.cpu.sketches import add_to_sketch, estimate_from_sketch
from tightwire.kernels.cpu.sparse import scatter_largest, scatter_sparse, select_above, select_largest
from tightwire.kernels.cpu.sparse_signs import (
    decode_sparse_signs,
    encode_sparse_signs,
    mean_magnitude,
    select_dominant_sign,
)
from tightwire.kernels.cpu.uniform import dequantise, quantise
from tightwire.kernels.cpu.votes import count_votes, decode_votes, encode_votes

__all__ = [
    "add_to_sketch",
    "count_votes",
    "decode_cosines",
    "decode_entropy",
    "decode_fixed",
    "decode_fp8",
    "decode_half",
    "decode_powers",
    "decode_signs",
    "decode_sparse_signs",
    "decode_votes",
    "dequantise",
    "encode_cosines",
    "encode_entropy",
    "encode_fixed",
    "encode_fp8",
    "encode_half",
    "encode_powers",
    "encode_signs",
    "encode_sparse_signs",
    "encode_votes",
    "estimate_from_sketch",
    "join_planes",
    "largest_bits",
    "mean_magnitude",
    "quantise",
    "rotate",
    "sample_by_magnitude",
    "scatter_blocks",
    "scatter_largest",
    "scatter_sparse",
    "select_above",
    "select_blocks",
    "select_dominant_sign",
    "select_largest",
    "shared_indices",
    "split_planes",
]
