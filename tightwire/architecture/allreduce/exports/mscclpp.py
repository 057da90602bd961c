"""MSCCL++ execution plans: one program per GPU, as JSON.

The format is that of MSCCL++ 0.7 and later, as its executor's own test plans have it (microsoft/mscclpp,
test/executor-tests/execution-plans): per GPU thread blocks with operations, channels, and buffers of others. A transfer
is a put over a port channel into the receiver's scratch, a signal and a wait; a reduction is done from scratch.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tightwire import files
from tightwire.architecture.allreduce.program import Program, Transfer

COLLECTIVES = {
    "all-reduce": "allreduce",
    "all-gather": "allgather",
    "reduce-scatter": "reducescatter",
    "all-to-all": "alltoall",
    "broadcast": "broadcast",
    "reduce": "reduce",
}
MAX_BYTES = (1 << 64) - 1
# From the input buffer, in place, and the scratch in which what is to be added lands.
INPUT, SCRATCH = "i", "s"


def write_mscclpp(program: Program, path: pathlib.Path, num_bytes: int) -> None:
    """Writes an execution plan that works in place on a buffer of any size."""
    files.write_text(path, json.dumps(execution_plan(program), indent=1) + "\n")


def execution_plan(program: Program) -> dict[str, Any]:
    """Returns the plan as plain values."""
    return {
        "name": f"{program.name}_{program.num_ranks}",
        "collective": COLLECTIVES[program.goal],
        "protocol": "Simple",
        "inplace": True,
        "reuse_resources": False,
        "gpus": [_gpu(program, rank) for rank in range(program.num_ranks)],
        "num_threads_per_block": 1024,
        "use_double_scratch_buffer": False,
        "buffer_alignment": 16,
        "min_message_size": 0,
        "max_message_size": MAX_BYTES,
    }


def _gpu(program: Program, rank: int) -> dict[str, Any]:
    peers = sorted({t.dst for t in program.sends(rank)} | {t.src for t in program.receives(rank)})
    chunks = program.num_chunks
    return {
        "id": rank,
        "input_chunks": chunks,
        "output_chunks": chunks,
        # Every arrival that is added has a place of its own: nothing there is ever overwritten.
        "scratch_chunks": sum(t.op == "reduce" for t in program.receives(rank)),
        "threadblocks": [_thread_block(program, rank, peers)] if peers else [],
        "channels": [{"channel_type": "port", "connected_to": peers}] if peers else [],
        "remote_buffers": [
            {"rank": peer, "type": kind, "access_channel_types": ["port"]}
            for peer in peers
            for kind in (INPUT, SCRATCH)
        ],
        "semaphores": [],
    }


def _thread_block(program: Program, rank: int, peers: Sequence[int]) -> dict[str, Any]:
    channels = list(range(len(peers)))
    return {
        "id": 0,
        "ops": _operations(program, rank, peers),
        "channels": [{"channel_type": "port", "channel_ids": channels}],
        "remote_buffer_refs": [
            {"access_channel_type": "port", "remote_buffer_ids": list(range(2 * len(peers)))}
        ],
    }


def _operations(program: Program, rank: int, peers: Sequence[int]) -> list[dict[str, Any]]:
    """Returns what a GPU does in order: of each step first what it sends, then what it takes in."""
    channel = {peer: i for i, peer in enumerate(peers)}
    operations: list[dict[str, Any]] = [_on("signal", channel.values()), _on("wait", channel.values())]
    for _, transfers in program.steps():
        for t in transfers:
            if t.src == rank:
                operations += _put(program, t, channel[t.dst])
        for t in transfers:
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
