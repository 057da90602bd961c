"""What NCCL can be told: which of its algorithms to use for which size (tuner), and over which rings (graph).

NCCL runs no foreign program, but it takes a table of choices (`NCCL_TUNER_CONFIG_FILE` of its example tuner plugin:
collective, sizes, algorithm, protocol, channels, nodes, ranks, pipelined operations, registered buffers), and a graph
of channels (`NCCL_GRAPH_FILE`), each an order of the GPUs of one node. Fields are those that its readers ask for
(NVIDIA/nccl, ext-tuner/example/plugin.c and src/graph/search.cc).
"""

from __future__ import annotations

import pathlib
from collections import Counter
from xml.sax.saxutils import quoteattr

from tightwire import files
from tightwire.architecture.allreduce.program import Program
from tightwire.errors import ProgramError

# Which of NCCL's algorithms moves the same bytes over the same kind of way.
ALGORITHMS = {
    "ring": "ring",
    "native": "ring",
    "tree": "tree",
    "double-tree": "tree",
    "synthesised": "tree",
    "hierarchical": "tree",
}
COLLECTIVES = {
    "all-reduce": "allreduce",
    "all-gather": "allgather",
    "reduce-scatter": "reducescatter",
    "broadcast": "broadcast",
    "reduce": "reduce",
}
# Below, NCCL's low-latency protocol is faster; the limit is where its own tuner changes on most machines.
SMALL_BYTES = 64 * 1024
MAX_BYTES = (1 << 63) - 1
# Channels of NCCL before 2.19; later versions have twice as many.
MAX_CHANNELS = 32
RING_PATTERN = 4


def write_tuner(program: Program, path: pathlib.Path, num_bytes: int) -> None:
    """Writes the tuner's table.

    Raises:
        ProgramError: a program that none of NCCL's algorithms stands for.
    """
    algorithm = ALGORITHMS.get(program.name.split()[0])
    if algorithm is None or program.goal not in COLLECTIVES:
        raise ProgramError(
            f"NCCL has no algorithm like {program.name} ({program.goal}); {', '.join(ALGORITHMS)} can be told to it."
        )
    kind, n = COLLECTIVES[program.goal], program.num_ranks
    lines = [
        "# collective,minBytes,maxBytes,algorithm,protocol,channels,nNodes,nRanks,numPipeOps,regBuff",
        f"{kind},0,{SMALL_BYTES},{algorithm},ll,-1,-1,{n},-1,-1",
        f"{kind},{SMALL_BYTES + 1},{MAX_BYTES},{algorithm},simple,{min(program.num_chunks, MAX_CHANNELS)},-1,{n},-1,-1",
    ]
    files.write_text(path, "\n".join(lines) + "\n")


def write_graph(program: Program, path: pathlib.Path, num_bytes: int) -> None:
    """Writes a graph whose channels visit the ranks in the orders in which the program's trees do.

    A channel of NCCL is an order of the GPUs of one node; a tree is written as the order of a walk through it, along
    which neighbours are neighbours in the tree wherever it does not branch. Equal orders are written once, and no more
    than NCCL has channels: those of the most chunks. A GPU's number is written as hexadecimal with its prefix, which
    every version reads alike; without it, later versions take `10` for 16.
    """
    walks = Counter(_walk(program, chunk) for chunk in range(program.num_chunks))
    orders = [order for order, _ in walks.most_common(MAX_CHANNELS)]
    lines = [
        '<graphs version="1">',
        f'  <graph id="0" pattern="{RING_PATTERN}" crossnic="0" nchannels="{len(orders)}" speedintra="12" '
        'speedinter="12" latencyinter="0" typeintra="SYS" typeinter="SYS" samechannels="0">',
    ]
    for order in orders:
        gpus = "".join(f"<gpu dev={quoteattr(hex(rank))}/>" for rank in order)
        lines.append(f"    <channel>{gpus}</channel>")
    files.write_text(path, "\n".join([*lines, "  </graph>", "</graphs>", ""]))


def _walk(program: Program, chunk: int) -> tuple[int, ...]:
    near: dict[int, list[int]] = {rank: [] for rank in range(program.num_ranks)}
    for t in program.transfers:
        if t.chunk == chunk:
            near[t.src].append(t.dst)
            near[t.dst].append(t.src)
    ends = Counter({rank: len(set(others)) for rank, others in near.items()})
    start = min(ends, key=lambda rank: (ends[rank] or program.num_ranks, rank))
    order: list[int] = []
    stack = [start]
    while stack:
        rank = stack.pop()
        if rank not in order:
            order.append(rank)
            stack += sorted({other for other in near[rank] if other not in order}, reverse=True)
    return tuple(order + [rank for rank in range(program.num_ranks) if rank not in order])
