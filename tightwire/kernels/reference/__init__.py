"""Every kernel in plain torch, on any device: the definition of what the others must write, bit for bit."""

from __future__ import annotations

from tightwire.kernels.reference.blocks import scatter_blocks, select_blocks
from tightwire.kernels.reference.cosines import decode_cosines, encode_cosines
from tightwire.kernels.reference.entropy import decode_entropy, encode_entropy
from tightwire.kernels.reference.fixed import decode_fixed, encode_fixed, largest_bits
from tightwire.kernels.reference.floats import decode_fp8, decode_powers, encode_fp8, encode_powers
from tightwire.kernels.reference.hadamard import rotate
from tightwire.kernels.reference.halves import decode_half, encode_half
from tightwire.kernels.reference.planes import join_planes, split_planes
from tightwire.kernels.reference.sampling import sample_by_magnitude, shared_indices
from tightwire.kernels.reference.signs import decode_signs, encode_signs
from tightwire.kernels.reference.sketches import add_to_sketch, estimate_from_sketch
from tightwire.kernels.reference.sparse import scatter_largest, scatter_sparse, select_above, select_largest
from tightwire.kernels.reference.sparse_signs import (
    decode_sparse_signs,
    encode_sparse_signs,
    mean_magnitude,
    select_dominant_sign,
)
from tightwire.kernels.reference.uniform import dequantise, quantise
from tightwire.kernels.reference.votes import count_votes, decode_votes, encode_votes

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
