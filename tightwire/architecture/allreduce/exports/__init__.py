"""Programs in the languages of other tools: MSCCL++, NCCL's tuner and graphs, Chakra's traces."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from tightwire.architecture.allreduce.exports.chakra import write_chakra
from tightwire.architecture.allreduce.exports.mscclpp import write_mscclpp
from tightwire.architecture.allreduce.exports.nccl import write_graph, write_tuner
from tightwire.architecture.allreduce.program import Program
from tightwire.errors import ProgramError

__all__ = ["EXPORTS", "export", "write_chakra", "write_graph", "write_mscclpp", "write_tuner"]

# By how the file's name ends.
EXPORTS: dict[str, Callable[[Program, pathlib.Path, int], None]] = {
    ".json": write_mscclpp,
    ".csv": write_tuner,
    ".xml": write_graph,
    ".et": write_chakra,
}


def export(program: Program, path: pathlib.Path, num_bytes: int) -> None:
    """Writes a program for another tool, told by how the file's name ends.

    Args:
        program: any; each tool says what it cannot express.
        path: `.json` an MSCCL++ execution plan, `.csv` NCCL's tuner, `.xml` an NCCL graph, `.et` Chakra traces, one
            file per rank (NAME.RANK.et).
        num_bytes: of the buffer, for tools whose files hold sizes.

    Raises:
        ProgramError: another ending, or a program that the tool cannot express.
    """
    if path.suffix not in EXPORTS:
        raise ProgramError(
            f"{path}: programs are written as {', '.join(EXPORTS)} (MSCCL++, tuner, graph, Chakra)."
        )
    EXPORTS[path.suffix](program, path, num_bytes)
