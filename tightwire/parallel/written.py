"""A layout written out for those who run it: a torch DeviceMesh, a torchtitan configuration, a picture of its links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tightwire.parallel.candidates import Candidate, Layouts
from tightwire.parallel.layout import Layout
from tightwire.parallel.network import RankGroup, groups_of
from tightwire.parallel.time import LayerCut

SCHEDULES = {"1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zero-bubble": "InterleavedZeroBubble"}
SHOWN_RANKS = 16
# In the picture; and colours, which repeat after so many groups.
DRAWN_RANKS, COLOURS = 64, 16
# Of torchtitan 0.3: its module of a model, and the configuration there.
TORCHTITAN = {
    "llama3-8b": ("llama3", "llama3_8b"),
    "llama3-70b": ("llama3", "llama3_70b"),
    "llama3-405b": ("llama3", "llama3_405b"),
    "deepseek-v3": ("deepseek_v3", "deepseek_v3_671b"),
}


def device_mesh(how: Layout) -> str:
    """Returns the lines of Python that make the layout's mesh of devices, the outermost dimension first.

    >>> print(device_mesh(Layout(data=4, shard="zero3", tensor=8, sequence=True)).splitlines()[-2])
    mesh = init_device_mesh("cuda", (4, 8), mesh_dim_names=("dp_shard", "tp"))
    """
    near = how.shard_group or (how.data if how.shard != "none" else 1)
    sides = [("dp_replicate", how.data // near), ("dp_shard", near)]
    stages = [("pp", how.pipeline)]
    outer = stages + sides if how.outermost == "pipeline" else sides + stages
    kept = [(name, size) for name, size in [*outer, ("cp", how.context), ("tp", how.tensor)] if size > 1]
    kept = kept or [("dp_replicate", 1)]
    sizes = ", ".join(str(size) for _, size in kept) + ("," if len(kept) == 1 else "")
    names = ", ".join(f'"{name}"' for name, _ in kept) + ("," if len(kept) == 1 else "")
    return (
        f"# {how}: ranks are placed from the inside out, the last dimension over neighbours.\n"
        "from torch.distributed.device_mesh import init_device_mesh\n\n"
        f'mesh = init_device_mesh("cuda", ({sizes}), mesh_dim_names=({names}))\n'
        f"# {_note(how)}\n"
    )


def _note(how: Layout) -> str:
    notes = {
        "none": "replicas: replicate(), or tightwire.attach on dp_replicate",
        "zero1": "the optimizer's state is spread: torch.distributed.optim.ZeroRedundancyOptimizer on dp_shard",
        "zero2": "fully_shard(module, mesh=mesh[...], reshard_after_forward=False)",
        "zero3": "fully_shard(module, mesh=mesh[...])",
    }
    return notes[how.shard] + (
        f"; expert parallel over {how.expert} of the data ranks" if how.expert > 1 else ""
    )


def torchtitan(candidate: Candidate, model: str, batch: int, seq_len: int) -> str:
    """Returns a configuration of torchtitan before 0.3, as TOML: the sections that a layout decides.

    torchtitan shards parameters wherever it shards anything: zero1 and zero2 are written as sharding without
    resharding after forward.
    """
    how = candidate.how
    near = how.shard_group or (how.data if how.shard != "none" else 1)
    share = batch // how.data
    stages = [
        f"pipeline_parallel_degree = {how.pipeline}",
        f'pipeline_parallel_schedule = "{SCHEDULES[how.schedule]}"',
        f"pipeline_parallel_microbatch_size = {how.micro_batch}",
    ]
    lines = [
        f"# {model}: {how}",
        f"# predicted: {candidate.step_s:.4g} s per step, {candidate.memory.total / 1e9:.3g} GB per device",
        "[training]",
        f"local_batch_size = {share if how.pipeline > 1 else how.micro_batch}",
        f"global_batch_size = {batch}",
        f"seq_len = {seq_len}",
        "",
        "[parallelism]",
        f"data_parallel_replicate_degree = {how.data // near}",
        f"data_parallel_shard_degree = {near}",
        f'fsdp_reshard_after_forward = "{"always" if how.shard == "zero3" else "never"}"',
        f"tensor_parallel_degree = {how.tensor}",
        f"context_parallel_degree = {how.context}",
        *(stages if how.pipeline > 1 else stages[:1]),
        f"expert_parallel_degree = {how.expert}",
        "",
        "[activation_checkpoint]",
        f'mode = "{how.recompute}"',
        "",
    ]
    return "\n".join(lines)


def torchtitan_command(candidate: Candidate, model: str, batch: int, seq_len: int) -> str:
    """Returns the command by which torchtitan 0.3 trains so: it reads no TOML any more.

    Recomputation is left to the configuration that the command names; a line says which one the layout asks for.
    """
    how = candidate.how
    near = how.shard_group or (how.data if how.shard != "none" else 1)
    share = batch // how.data
    module, config = TORCHTITAN.get(model, ("MODULE", "CONFIG"))
    asked = {
        "training.local_batch_size": share if how.pipeline > 1 else how.micro_batch,
        "training.global_batch_size": batch,
        "training.seq_len": seq_len,
        "parallelism.data_parallel_replicate_degree": how.data // near,
        "parallelism.data_parallel_shard_degree": near,
        "parallelism.fsdp_reshard_after_forward": "always" if how.shard == "zero3" else "never",
        "parallelism.tensor_parallel_degree": how.tensor,
        "parallelism.context_parallel_degree": how.context,
        "parallelism.pipeline_parallel_degree": how.pipeline,
        "parallelism.expert_parallel_degree": how.expert,
    }
    flags = [f"--{name} {value}" for name, value in asked.items()]
    if how.tensor > 1:
        flags.append(f"--parallelism.{'' if how.sequence else 'no_'}enable_sequence_parallel")
    if how.pipeline > 1:
        flags += [
            f"--parallelism.pipeline_parallel_schedule {SCHEDULES[how.schedule]}",
            f"--parallelism.pipeline_parallel_microbatch_size {how.micro_batch}",
            "--training.disable_cuda_graphs",
        ]
    unknown = (
        [] if model in TORCHTITAN else [f"# write torchtitan's module and configuration of {model} below"]
    )
    head = [
        f"# {model}: {how}",
        f"# predicted: {candidate.step_s:.4g} s per step, {candidate.memory.total / 1e9:.3g} GB per device",
        f"# recomputation: {how.recompute} (activation_checkpoint of the configuration)",
        *unknown,
    ]
    call = [
        "torchrun --nnodes $NNODES --nproc-per-node $GPUS -m torchtitan.train",
        f"--module {module} --config {config}",
    ]
    return "\n".join([*head, " \\\n    ".join([*call, *flags]), ""])


def link_loads(cut: LayerCut, layouts: Layouts) -> list[dict[str, Any]]:
    """Returns which dimension loads which level's lines: ranks that share a line, and seconds per byte.

    One row per dimension of more than one rank and level that it crosses: `ranks` send at once over the busiest line
    of the level, from and to the next of their group.
    """
    rows = []
    for name, group in cut.groups.items():
        if group.size == 1:
            continue
        for level, load in cut.network.loads(group).items():
            if load:
                rows.append({"dimension": name, "size": group.size, "link": level, "ranks": load})
    return rows


def placement(cut: LayerCut, workers: int) -> list[str]:
    """Returns the picture of the placement: a row per dimension, a letter per rank; equal letters talk.

    >>> from tightwire.parallel import Accelerators, TrainingCost, Transformer
    >>> tiny = Transformer(layers=2, hidden=8, heads=2, seq_len=8)
    >>> cut = LayerCut(tiny, Layout(tensor=2, data=2), TrainingCost(batch=2), Accelerators(), Accelerators().network)
    >>> print("\\n".join(placement(cut, 4)))
    tensor    AABB
    data      ABAB
    """
    rows = []
    for name, group in cut.groups.items():
        if group.size > 1 and name != "expert":
            rows.append(f"{name:<10}{_letters(group, workers)}")
    return rows


def _letters(group: RankGroup, workers: int) -> str:
    letter = {}
    for number, ranks in enumerate(groups_of(workers, group)):
        letter.update(dict.fromkeys(ranks, chr(ord("A") + number % 26)))
    shown = "".join(letter[rank] for rank in range(min(workers, SHOWN_RANKS)))
    return shown + ("…" if workers > SHOWN_RANKS else "")


def picture(cut: LayerCut, rows: Sequence[dict[str, Any]], workers: int) -> Any:
    """Returns a plotly figure, ranks × links: in a column, ranks of one colour talk over that link.

    Args:
        cut: a layout on a network.
        rows: what `link_loads` tells of it.
        workers: of the cluster, the first of which are shown.
    """
    import plotly.graph_objects as go

    shown = min(workers, DRAWN_RANKS)
    columns, colours, texts = [], list[list[int]](), list[list[str]]()
    for row in rows:
        number = dict[int, int]()
        for group, ranks in enumerate(groups_of(workers, cut.groups[row["dimension"]])):
            number.update(dict.fromkeys(ranks, group))
        columns.append(f"{row['dimension']} ({row['size']})<br>{row['link']}<br>{row['ranks']:g} at once")
        colours.append([number.get(rank, 0) % COLOURS for rank in range(shown)])
        texts.append([f"rank {rank}, group {number.get(rank, 0)}" for rank in range(shown)])
    drawing = go.Figure(
        go.Heatmap(
            z=[list(values) for values in zip(*colours, strict=True)],
            text=[list(values) for values in zip(*texts, strict=True)],
            hoverinfo="text",
            x=columns,
            y=list(range(shown)),
            colorscale="Turbo",
            showscale=False,
            xgap=6,
            ygap=1,
        )
    )
    drawing.update_yaxes(autorange="reversed")
    more = f", the first {shown} of {workers} ranks" if workers > shown else ""
    drawing.update_layout(
        title=f"Ranks × links of {cut.how}{more}",
        xaxis_title="parallel dimension (its ranks), the link it crosses, and how many ranks share a line of it",
        yaxis_title="rank; in a column, equal colours talk",
    )
    return drawing
