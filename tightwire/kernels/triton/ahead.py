"""Compiles every kernel for CUDA, which needs no GPU, and says what each takes of a multiprocessor.

Triton's interpreter takes more than its compiler does, so that passing under it proves less than compiling. Where code
fuses a product with a sum, or takes denormals for zero, its messages would not be those of other devices: an error.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tightwire.errors import LabError
from tightwire.kernels import triton as kernels
from tightwire.kernels._rotations import cosine_scale
from tightwire.kernels.formats import E4M3, E5M2, Grid
from tightwire.kernels.triton._parts import running_by

# Compute capabilities: A100, H100, B200.
CAPABILITIES = (80, 90, 100)
# What is not rounded as on other devices.
_INEXACT = re.compile(r"\bfma\.\S+|\S+\.ftz\S*|\S+\.approx\S*|div\.full\S*")
_KINDS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel, compiled for one kind of device.

    Attributes:
        kernel: its name.
        constants: that shape it.
        capability: of the device, as in 80 for 8.0.
        registers: per thread.
        spill_bytes: per thread, of what registers do not hold.
        shared_bytes: of memory that a program's threads share.
    """

    kernel: str
    constants: str
    capability: int
    registers: int
    spill_bytes: int
    shared_bytes: int


def compile_all(
    capabilities: Sequence[int] = CAPABILITIES,
    on_kernel: Callable[[str], None] = lambda name: None,
    *,
    once: bool = False,
) -> list[Compiled]:
    """Compiles every kernel, with one or more of all constants that shape it.

    Args:
        capabilities: of devices.
        on_kernel: is told what is compiled.
        once: with the first constants alone.

    Raises:
        LabError: code that is not exact, or an assembler that does not run.
    """
    found: list[Compiled] = []
    for capability in capabilities:
        compiler = _Compiler(capability, on_kernel, once)
        with running_by(compiler):
            call_all()
        found += compiler.found
    return found


class _Compiler:
    """Compiles what would be run."""

    def __init__(self, capability: int, on_kernel: Callable[[str], None], once: bool) -> None:
        self._once = once
        self.found: list[Compiled] = []
        self._capability, self._on_kernel = capability, on_kernel
        self._known: set[str] = set()

    def __call__(
        self, kernel: Any, num_programs: int, args: Sequence[Any], constants: Mapping[str, Any], warps: int
    ) -> None:
        names = kernel.arg_names
        signature = {name: _kind_of(argument) for name, argument in zip(names, args, strict=False)}
        signature |= dict.fromkeys(constants, "constexpr")
        key = str(kernel) if self._once else f"{kernel} {signature} {constants}"
        if key in self._known:
            return
        self._known.add(key)
        name, shown = str(kernel.__name__), ", ".join(f"{k}={v}" for k, v in constants.items())
        self._on_kernel(f"{name} for {self._capability / 10}")
        values = {(names.index(constant),): value for constant, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        target = GPUTarget("cuda", self._capability, 32)
        code = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": False})
        if inexact := _INEXACT.findall(code.asm["ptx"]):
            raise LabError(
                f"the kernel {name} ({shown}) compiles for {self._capability / 10} to "
                f"{', '.join(sorted(set(inexact)))}, which is not rounded as on other devices: write it so that "
                "products are not fused with sums."
            )
        registers, spill_bytes = _assemble(code.asm["ptx"])
        self.found.append(
            Compiled(
                kernel=name,
                constants=shown,
                capability=self._capability,
                registers=registers,
                spill_bytes=spill_bytes,
                shared_bytes=int(code.metadata.shared),
            )
        )


def _kind_of(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return _KINDS[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def _assemble(ptx: str) -> tuple[int, int]:
    """Returns registers and spilled bytes per thread, as the assembler that comes with Triton tells them.

    Raises:
        LabError: it does not run, or tells nothing.
    """
    architecture = re.search(r"\.target\s+(sm_\w+)", ptx)
    assert architecture is not None, "code for CUDA names its target"
    name = "ptxas-blackwell" if architecture[1].startswith("sm_10") else "ptxas"
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [
            assembler,
            "-v",
            f"--gpu-name={architecture[1]}",
            source,
            "-o",
            Path(folder) / "kernel.cubin",
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    registers = re.search(r"Used (\d+) registers", said)
    if done.returncode or registers is None:
        raise LabError(f"{assembler} does not assemble for {architecture[1]}: {said.strip()[-300:]}")
    spills = [int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    return int(registers[1]), max(spills, default=0)


def call_all() -> None:
    """Calls every kernel on small tensors, with one or more of all constants that shape it; nothing is computed."""
    x, message = torch.randn(5000), torch.zeros(40000, dtype=torch.uint8)
    for grid in (
        Grid(block=1024, bits=8, levels=127),
        Grid(block=512, bits=4, levels=7, norm="l2", stochastic=True),
        Grid(block=256, bits=2, levels=1, clip=2.5, stochastic=True),
        Grid(block=512, bits=8, levels=10, norm="l2", doubling=True),
    ):
        kernels.quantise(x, message, grid, 1)
        kernels.dequantise(message, x, grid, True)
    kernels.encode_signs(x, message, 1024, False)
    kernels.encode_signs(x, message, 64, True)
    kernels.decode_signs(message, x, 1024, True, True)
    kernels.encode_votes(x, message, 1024, 1)
    kernels.count_votes(message.view(4, -1), message, 5000, 1024, 1)
    kernels.decode_votes(message, x, 1024, True)
    for half in (torch.float16, torch.bfloat16):
        kernels.encode_half(x, message[:10000], half)
        kernels.decode_half(message[:10000], x, half, True)
    for codes, sums in ((torch.int8, torch.int16), (torch.int32, torch.int32)):
        kernels.encode_fixed(x, torch.zeros(5000, dtype=codes), 0.1, 127, codes == torch.int8, 1)
        kernels.decode_fixed(torch.zeros(5000, dtype=sums), x, 0.1)
    kernels.encode_powers(x, message, 1024, 1)
    kernels.decode_powers(message, x, 1024, True)
    for form in (E4M3, E5M2):
        kernels.encode_fp8(x, message, 1024, form)
        kernels.decode_fp8(message, x, 1024, form, True)
    for dtype in (torch.float32, torch.bfloat16):
        _select(x.to(dtype), message)
    kernels.scatter_largest(message, x.to(torch.float16), 10, True)
    kernels.scatter_largest(message, x.double(), 10, True)
    kernels.sample_by_magnitude(x, message, 10, 1)
    kernels.shared_indices(5000, 1, torch.zeros(10, dtype=torch.int64))
    for integer in (torch.int16, torch.int32, torch.int64):
        bits = torch.zeros(1000, dtype=integer)
        kernels.split_planes(bits, message)
        kernels.join_planes(message, bits)
    for chunk in (64, 256):
        bounds, waves = (1.0, cosine_scale(chunk)), torch.zeros(chunk, chunk)
        room = message[: 12 * -(-5000 // chunk)]
        kernels.encode_cosines(x, waves, bounds, 2, room)
        for how in (0, 1):
            kernels.decode_cosines(room, x, waves, 2, how)
    for rows in (1, 3, 5):
        table = torch.zeros(rows, 160)
        kernels.add_to_sketch(x, table, 1)
        kernels.estimate_from_sketch(table, x, 1)


def _select(x: torch.Tensor, message: torch.Tensor) -> None:
    kernels.select_largest(x, message, 10)
    kernels.select_above(x, message, 10, 0.5)
    kernels.select_blocks(x, message, 1024, (10, 3))
    kernels.scatter_sparse(message, x, 10, True)
    kernels.scatter_blocks(message, x, 1024, (10, 3), False)
