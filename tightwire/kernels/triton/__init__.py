"""Kernels for CUDA in Triton: compiled once per machine and cached on disk.

A file holds the calls of a theme, which take tensors; the private one of the same name holds the programs that run on
the device. All but the last lines of a call run there, in the current stream; only what a message's content decides
(whether indices are possible, how probabilities are scaled) waits for the host.

Whatever is not written here is plain torch, on the device all the same: what few plans need (sparse signs, random
rotations), and what no multiprocessor's registers hold (blocks beyond 16,384 elements). Entropy coding is the host's.
"""

from __future__ import annotations

from tightwire.kernels.reference.hadamard import rotate
from tightwire.kernels.reference.sparse_signs import (
    decode_sparse_signs,
    encode_sparse_signs,
    mean_magnitude,
    select_dominant_sign,
)
from tightwire.kernels.triton.blocks import scatter_blocks, select_blocks
from tightwire.kernels.triton.cosines import decode_cosines, encode_cosines
from tightwire.kernels.triton.entropy import decode_entropy, encode_entropy
from tightwire.kernels.triton.fixed import decode_fixed, encode_fixed, largest_bits
from tightwire.kernels.triton.floats import decode_fp8, decode_powers, encode_fp8, encode_powers
from tightwire.kernels.triton.halves import decode_half, encode_half
from tightwire.kernels.triton.planes import join_planes, split_planes
from tightwire.kernels.triton.sampling import sample_by_magnitude, shared_indices
from tightwire.kernels.triton.signs import decode_signs, encode_signs
from tightwire.kernels.triton.sketches import add_to_sketch, estimate_from_sketch
from tightwire.kernels.triton.sparse import scatter_largest, scatter_sparse, select_above, select_largest
from tightwire.kernels.triton.uniform import dequantise, quantise
from tightwire.kernels.triton.votes import count_votes, decode_votes, encode_votes

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
