"""Compiles every kernel for CUDA, which needs no GPU: the interpreter takes more than the compiler does.

Exits with an error where one does not compile, or its code fuses a product with a sum or takes denormals for zero:
then its messages would not be those of other devices.
"""

import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tightwire.kernels import triton as gpu
from tightwire.kernels.formats import E4M3, E5M2, Grid
from tightwire.kernels.triton import _parts, sampling

TARGET = GPUTarget("cuda", 80, 32)
NAMES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
compiled: set[str] = set()


def kind_of(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return NAMES[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def compile_only(kernel: Any, num_programs: int, *args: Any, tile: int = 2048, **constants: Any) -> None:
    """Stands in for `launch`."""
    names = kernel.arg_names
    signature = {name: kind_of(argument) for name, argument in zip(names, args, strict=False)}
    signature |= dict.fromkeys(constants, "constexpr")
    values = {(names.index(name),): value for name, value in constants.items()}
    if f"{kernel} {signature} {values}" in compiled:
        return
    compiled.add(f"{kernel} {signature} {values}")
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    code = triton.compile(source, target=TARGET, options={"num_warps": 4, "enable_fp_fusion": False})
    inexact = re.findall(r"\bfma\.\S+|\S+\.ftz\S*|\S+\.approx\S*|div\.full\S*", code.asm["ptx"])
    assert not inexact, f"{kernel} {constants}: {inexact}"


def main() -> None:
    _parts.launch = compile_only
    sampling.probability_scale = lambda counts, k: 1.0
    x, message = torch.randn(5000), torch.zeros(40000, dtype=torch.uint8)
    for grid in (
        Grid(block=1024, bits=8, levels=127),
        Grid(block=512, bits=4, levels=7, norm="l2", stochastic=True),
        Grid(block=256, bits=2, levels=1, clip=2.5, stochastic=True),
        Grid(block=512, bits=8, levels=10, norm="l2", doubling=True),
    ):
        gpu.quantise(x, message, grid, 1)
        gpu.dequantise(message, x, grid, True)
    gpu.encode_signs(x, message, 1024, False)
    gpu.encode_signs(x, message, 64, True)
    gpu.decode_signs(message, x, 1024, True, True)
    gpu.encode_votes(x, message, 1024, 1)
    gpu.count_votes(message.view(4, -1), message, 5000, 1024, 1)
    gpu.decode_votes(message, x, 1024, True)
    for half in (torch.float16, torch.bfloat16):
        gpu.encode_half(x, message[:10000], half)
        gpu.decode_half(message[:10000], x, half, True)
    gpu.encode_powers(x, message, 1024, 1)
    gpu.decode_powers(message, x, 1024, True)
    for form in (E4M3, E5M2):
        gpu.encode_fp8(x, message, 1024, form)
        gpu.decode_fp8(message, x, 1024, form, True)
    for dtype in (torch.float32, torch.bfloat16):
        select(x.to(dtype), message)
    gpu.scatter_largest(message, x.to(torch.float16), 10, True)
    gpu.scatter_largest(message, x.double(), 10, True)
    gpu.sample_by_magnitude(x, message, 10, 1)
    gpu.shared_indices(5000, 1, torch.zeros(10, dtype=torch.int64))


def select(x: torch.Tensor, message: torch.Tensor) -> None:
    gpu.select_largest(x, message, 10)
    gpu.select_above(x, message, 10, 0.5)
    gpu.select_blocks(x, message, 1024, (10, 3))
    gpu.scatter_sparse(message, x, 10, True)
    gpu.scatter_blocks(message, x, 1024, (10, 3), False)


if __name__ == "__main__":
    main()
