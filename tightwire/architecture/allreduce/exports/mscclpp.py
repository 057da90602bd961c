"""MSCCL++ execution plans: one program per GPU, as JSON.

The format is that of MSCCL++ 0.7 and later, as its executor's own test plans have it (microsoft/mscclpp,
test/executor-tests/execution-plans): per GPU thread blocks with operations, channels, and buffers of others. A transfer
is a put over a port channel into the receiver's scratch, a signal and a wait; a reduction is done from scratch. Chunks
are shared out to thread blocks, for the executor has room for few operations in each.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tightwire import files
from tightwire.architecture.allreduce.program import Program, Transfer
from tightwire.errors import ProgramError

COLLECTIVES = {
    "all-reduce": "allreduce",
    "all-gather": "allgather",
    "reduce-scatter": "reducescatter",
    "all-to-all": "alltoall",
    "broadcast": "broadcast",
    "reduce": "reduce",
}
MAX_BYTES = (1 << 64) - 1
# Of a thread block, as the executor has room for (src/include/execution_common.hpp): operations; and channels per
# operation and half as many as remote buffers, of which every peer has two.
MAX_OPERATIONS, MAX_PEERS = 64, 8
# From the input buffer, in place, and the scratch in which what is to be added lands.
INPUT, SCRATCH = "i", "s"


def write_mscclpp(program: Program, path: pathlib.Path, num_bytes: int) -> None:
    """Writes an execution plan that works in place on a buffer of any size."""
    files.write_text(path, json.dumps(execution_plan(program), indent=1) + "\n")


def execution_plan(program: Program) -> dict[str, Any]:
    """Returns the plan as plain values.

    Raises:
        ProgramError: a chunk that takes more operations or peers than a thread block of the executor holds.
    """
    blocks = _blocks(program)
    return {
        "name": f"{program.name}_{program.num_ranks}",
        "collective": COLLECTIVES[program.goal],
        "protocol": "Simple",
        "inplace": True,
        "reuse_resources": False,
        "gpus": [_gpu(program, rank, blocks) for rank in range(program.num_ranks)],
        "num_threads_per_block": 1024,
        "use_double_scratch_buffer": False,
        "buffer_alignment": 16,
        "min_message_size": 0,
        "max_message_size": MAX_BYTES,
    }


def _gpu(program: Program, rank: int, blocks: Sequence[Sequence[int]]) -> dict[str, Any]:
    peers = sorted({t.dst for t in program.sends(rank)} | {t.src for t in program.receives(rank)})
    chunks = program.num_chunks
    # One channel per thread block and peer: both ends count a pair's channels in the order of the blocks.
    near = [_peers(program, rank, block) for block in blocks]
    starts = [sum(map(len, near[:number])) for number in range(len(near))]
    used = [number for number, others in enumerate(near) if others]
    return {
        "id": rank,
        "input_chunks": chunks,
        "output_chunks": chunks,
        # Every arrival that is added has a place of its own: nothing there is ever overwritten.
        "scratch_chunks": sum(t.op == "reduce" for t in program.receives(rank)),
        "threadblocks": [
            {
                "id": place,
                "ops": _operations(program, rank, blocks[number], near[number]),
                "channels": [
                    {
                        "channel_type": "port",
                        "channel_ids": [starts[number] + i for i in range(len(near[number]))],
                    }
                ],
                "remote_buffer_refs": [
                    {
                        "access_channel_type": "port",
                        "remote_buffer_ids": [
                            2 * peers.index(p) + kind for p in near[number] for kind in (0, 1)
                        ],
                    }
                ],
            }
            for place, number in enumerate(used)
        ],
        "channels": [{"channel_type": "port", "connected_to": [p for others in near for p in others]}]
        if peers
        else [],
        "remote_buffers": [
            {"rank": peer, "type": kind, "access_channel_types": ["port"]}
            for peer in peers
            for kind in (INPUT, SCRATCH)
        ],
        "semaphores": [],
    }


def _blocks(program: Program) -> list[list[int]]:
    """Shares chunks out to thread blocks, each of which holds so many operations and channels, on every GPU.

    Raises:
        ProgramError: a chunk alone is too much for a block.
    """
    blocks: list[list[int]] = [[]]
    for chunk in range(program.num_chunks):
        if not _fits(program, [*blocks[-1], chunk]):
            blocks.append([])
        if not _fits(program, [*blocks[-1], chunk]):
            raise ProgramError(
                f"{program.name} over {program.num_ranks} ranks moves a chunk in more than {MAX_OPERATIONS} operations "
                f"or between more than {MAX_PEERS} peers, which no thread block of MSCCL++ holds."
            )
        blocks[-1].append(chunk)
    return blocks


def _fits(program: Program, block: Sequence[int]) -> bool:
    for rank in range(program.num_ranks):
        near = _peers(program, rank, block)
        if len(near) > MAX_PEERS or len(_operations(program, rank, block, near)) > MAX_OPERATIONS:
            return False
    return True


def _peers(program: Program, rank: int, block: Sequence[int]) -> list[int]:
    own = {t.dst for t in program.sends(rank) if t.chunk in block}
    return sorted(own | {t.src for t in program.receives(rank) if t.chunk in block})


def _operations(
    program: Program, rank: int, block: Sequence[int], peers: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns what a thread block does in order: of each step first what it sends, then what it takes in."""
    channel = {peer: i for i, peer in enumerate(peers)}
    operations: list[dict[str, Any]] = [_on("signal", channel.values()), _on("wait", channel.values())]
    for _, transfers in program.steps():
        own = [t for t in transfers if t.chunk in block]
        for t in own:
            if t.src == rank:
                operations += _put(program, t, channel[t.dst])
        for t in own:
            if t.dst == rank:
                operations += _take(program, t, channel[t.src])
    return operations


def _put(program: Program, t: Transfer, channel: int) -> list[dict[str, Any]]:
    place = 2 * channel + (t.op == "reduce")
    index = _place_in_scratch(program, t) if t.op == "reduce" else t.chunk
    return [
        {
            "name": "put",
            "src_buff": [{"type": INPUT, "index": t.chunk, "size": 1}],
            "dst_buff": [{"buffer_id": place, "index": index, "size": 1}],
            "channel_ids": [channel],
            "channel_type": "port",
        },
        _on("signal", [channel]),
        _on("flush", [channel]),
    ]


def _take(program: Program, t: Transfer, channel: int) -> list[dict[str, Any]]:
    waits = [_on("wait", [channel]), {"name": "nop"}]
    if t.op == "copy":
        return waits
    own = {"type": INPUT, "index": t.chunk, "size": 1}
    landed = {"type": SCRATCH, "index": _place_in_scratch(program, t), "size": 1}
    return [*waits, {"name": "re", "src_buff": [own, landed], "dst_buff": [own]}, {"name": "nop"}]


def _place_in_scratch(program: Program, t: Transfer) -> int:
    """Returns which of the receiver's additions this transfer is."""
    return [other for other in program.receives(t.dst) if other.op == "reduce"].index(t)


def _on(name: str, channels: Any) -> dict[str, Any]:
    return {"name": name, "channel_ids": list(channels), "channel_type": "port"}
