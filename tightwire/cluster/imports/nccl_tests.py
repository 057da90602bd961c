"""nccl-tests and rccl-tests: the cluster that a run measured. Bus bandwidth: doc/PERFORMANCE.md of nccl-tests."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from tightwire import files
from tightwire.cluster.fit import PRIOR_RESIDUAL
from tightwire.cluster.imports.hardware import inside_of_device
from tightwire.cluster.imports.measured import measured_all_reduce
from tightwire.cluster.imports.nccl_tests_log import NcclTestsRun, Row, TestedDevice, read_runs
from tightwire.cluster.values import Cluster
from tightwire.errors import FileError
from tightwire.units import print_bytes, print_rate

# Bus over algorithm bandwidth of n ranks (doc/PERFORMANCE.md), and the number of ranks of such a ratio.
Ratio = Callable[[float], float]
SHARES: Mapping[str, Ratio] = {
    "all_reduce": lambda r: 2 / (2 - r) if r < 2 else math.inf,
    "all_gather": lambda r: 1 / (1 - r) if r < 1 else math.inf,
    "reduce_scatter": lambda r: 1 / (1 - r) if r < 1 else math.inf,
}
# A ring's all-reduce is a reduce-scatter and an all-gather of the same size.
HALVES = ("all_gather", "reduce_scatter")


def from_nccl_tests(path: str | pathlib.Path) -> Cluster:
    """Returns the cluster that a run of nccl-tests measured: its text, as printed, or its JSON.

    All rows count. All-gather and reduce-scatter are converted, and the cluster says so; other collectives tell nothing
    of an all-reduce.

    Raises:
        FileError: unreadable, no all-reduce in it, processes that ran apart, wrong results, or too few sizes.
    """
    text = files.read_text(path, most_bytes=10**8, strict=False)
    try:
        return _cluster(read_runs(text))
    except FileError as error:
        raise FileError(f"{path}: {files.shortened(str(error))}") from None


def _cluster(runs: Sequence[NcclTestsRun]) -> Cluster:
    if not any(run.rows for run in runs) and (broken := sum(len(run.broken) for run in runs)):
        raise FileError(
            f"all {broken} lines of sizes are cut by other output or hold no time; run it with NCCL_DEBUG=WARN."
        )
    if not any(run.rows for run in runs):
        raise FileError(
            "no line of a size with its time is in it; give the whole output of all_reduce_perf, or its -J file."
        )
    for run in runs:
        _require_together(run)
    of_kind = {kind: [run for run in runs if run.rows and _kind(run) == kind] for kind in map(_kind, runs)}
    kind = next((kind for kind in ("all_reduce", *HALVES) if of_kind.get(kind)), None)
    if kind is None:
        raise FileError(
            f"it measures {', '.join(sorted(k for k in of_kind if of_kind[k]))}, from which an all-reduce cannot be "
            "told; run all_reduce_perf."
        )
    chosen = of_kind[kind]
    for run in chosen:
        _require_consistent(run)
    ranks = {_ranks(run, kind) for run in chosen}
    places = {run.hosts for run in chosen}
    if len(ranks) > 1 or len(places) > 1:
        said = "; ".join(f"{_ranks(run, kind)} ranks on {', '.join(run.hosts) or '?'}" for run in chosen)
        raise FileError(
            f"it holds {len(chosen)} runs ({said}): give them as files of their own. If one run over all was meant, "
            "build nccl-tests with MPI=1."
        )
    return _fitted(chosen, kind, ranks.pop(), [k for k in of_kind if k != kind and of_kind[k]])


def _fitted(runs: Sequence[NcclTestsRun], kind: str, ranks: int, others: Sequence[str]) -> Cluster:
    rows = [row for run in runs for row in run.rows]
    times = 2 if kind in HALVES else 1
    groups = len({device.group for device in runs[0].devices})
    listed = [device for device in runs[0].devices if device.group == runs[0].devices[0].group]
    devices = listed if len(listed) == ranks else []
    nodes = _nodes(devices)
    inside = inside_of_device(devices[0].title) if nodes > 1 else None
    notes = list(_notes(runs, kind, others))
    if groups > 1 and devices:
        notes.append(
            f"{groups} groups of {ranks} ranks ran at the same time: this is one of them, as fast as it is beside the "
            "others."
        )
    elif len(runs[0].devices) != ranks:
        notes.append(
            f"{len(runs[0].devices)} of {ranks} ranks are listed (as bus over algorithm bandwidth tells), so that "
            "nodes are not known."
        )
    elif len(set(runs[0].hosts)) > 1 and nodes == 1 and ranks > len(runs[0].hosts):
        notes.append(
            "The hosts do not hold equally many neighbouring ranks, so that no level stands for nodes."
        )
    if 1 < nodes < ranks:
        notes.append(
            f"Inside a node nothing was measured: {print_rate(inside)} each is what {devices[0].title} has."
            if inside
            else "Inside a node nothing was measured: taken to be as fast as across."
        )
    return measured_all_reduce(
        [(float(row.size), times * row.seconds) for row in rows],
        ranks,
        nodes=nodes,
        inside_bytes_per_s=inside,
        notes=notes,
        source="measured" if times == 1 else "prior",
        least_residual=0.0 if times == 1 else PRIOR_RESIDUAL,
    )


def _notes(runs: Sequence[NcclTestsRun], kind: str, others: Sequence[str]) -> Iterator[str]:
    if kind in HALVES:
        yield f"Measured was {kind}: an all-reduce is taken to last twice as long, {PRIOR_RESIDUAL:.0%} off or more."
    if others:
        yield f"Tables of {', '.join(others)} are left out."
    if broken := [size for run in runs for size in run.broken]:
        yield f"{len(broken)} lines are cut by other output or hold no time, and left out: {_sizes(broken)}."
    if empty := sum(run.empty for run in runs):
        yield f"{empty} lines of 0 bytes are left out."
    if attempts := sum(run.attempts - 1 for run in runs):
        yield f"{attempts} attempts that ended before their first size are left out."
    if len(runs) > 1:
        yield f"{len(runs)} runs of the same ranks are fitted together."


def _require_together(run: NcclTestsRun) -> None:
    """Refuses what was not one run, or computed wrong results."""
    ranks: dict[int, TestedDevice] = {}
    for device in run.devices:
        other = ranks.setdefault(device.rank, device)
        if (other.host, other.pid, other.device) == (device.host, device.pid, device.device):
            continue
        if run.attempts > 1 and _has_each_size_once(run):  # two worlds would each have printed theirs
            ranks[device.rank] = device
        else:
            raise FileError(
                f"rank {device.rank} is listed on {other.host} (process {other.pid}) and on {device.host} (process "
                f"{device.pid}): the processes ran on their own, each a world of its own. Build nccl-tests with MPI=1 "
                "and launch it with mpirun or srun."
            )
    run.devices = [ranks[rank] for rank in sorted(ranks)]
    if run.attempts > 1 and len(ranks) == len(run.devices):
        run.attempts = 1
    wrong = [row.size for row in run.rows if row.wrong > 0]
    if run.out_of_bounds and not wrong:
        raise FileError(
            f"{run.out_of_bounds} results are wrong (out of bounds), and it does not say of which sizes. Times of "
            "wrong results say nothing; look for the broken device, cable or library first."
        )
    if wrong:
        raise FileError(
            f"{len(wrong)} sizes have wrong results (#wrong is above 0): {_sizes(wrong)}. Times of wrong results say "
            "nothing; look for the broken device, cable or library first."
        )
    if run.rows and all(row.busbw[1] <= 0.005 < row.algbw[0] for row in run.rows):
        raise FileError(
            "bus bandwidth is 0 in all rows: a world of one rank, which sends nothing. Run it on two."
        )


def _has_each_size_once(run: NcclTestsRun) -> bool:
    return len({(row.size, row.of) for row in run.rows}) == len(run.rows) > 0


def _require_consistent(run: NcclTestsRun) -> None:
    """Makes sure that bandwidths are those of the times; times in ms, as before 2.0, are converted."""
    for unit_us in (1.0, 1e3):
        if all(_fits(row, unit_us) for row in run.rows):
            run.rows = [replace(row, seconds=row.seconds * unit_us) for row in run.rows]
            return
    wrong = [row.size for row in run.rows if not _fits(row, 1.0)]
    raise FileError(
        f"{len(wrong)} of {len(run.rows)} lines contradict themselves: algbw is not size over time in {_sizes(wrong)}. "
        "Columns are shifted, or the file was edited; give the output as it was printed."
    )


def _fits(row: Row, unit_us: float) -> bool:
    """Whether the printed bandwidth is size over time, but for rounding."""
    low, high = (row.size / (us * unit_us) / 1e3 if us > 0 else math.inf for us in reversed(row.us))
    return row.algbw[0] * 0.98 <= high and low <= row.algbw[1] * 1.02 + 0.01


def _kind(run: NcclTestsRun) -> str:
    """Returns the collective: by its name, else by its columns and its ratio of bandwidths."""
    if run.collective or not run.rows:
        return run.collective or "all_reduce"
    ratio = _ratio(run)
    if run.rows[0].has_root:
        return "broadcast, gather or scatter" if run.rows[0].redop in ("", "none") else "reduce"
    if run.rows[0].redop == "none":
        return "broadcast, all_gather or alltoall"
    return "all_reduce" if ratio[1] >= 1 else "reduce_scatter"


def _ratio(run: NcclTestsRun) -> tuple[float, float]:
    """Returns between which values bus over algorithm bandwidth is, for all rows alike."""
    low, high = 0.0, 2.0
    for row in run.rows:
        if row.algbw[0] > 0 and row.busbw[0] > 0:
            low, high = max(low, row.busbw[0] / row.algbw[1]), min(high, row.busbw[1] / row.algbw[0])
    return low, high


def _ranks(run: NcclTestsRun, kind: str) -> int:
    """Returns how many ranks took part: as listed, where the bandwidths do not contradict; else as they tell."""
    low, high = _ratio(run)
    least, most = SHARES[kind](low) * 0.999, SHARES[kind](high) * 1.001
    groups = len({device.group for device in run.devices}) or 1
    last = run.devices[-1].rank + 1 if run.devices else 0
    is_complete = last == len(run.devices) > 0
    if is_complete and (
        low <= 0 or low > high
    ):  # nothing was fast enough to have digits, or they were edited
        return last // groups
    for count in (len(run.devices) // groups, last):
        if count >= 2 and least <= count <= most:
            return count
    counts = range(max(2, math.ceil(min(least, 10**6))), math.floor(min(most, 10**6)) + 1)
    if is_complete:
        seen = f"that of {counts[0]}" if len(counts) else "none that it can have"
        raise FileError(
            f"{last} ranks are listed, and bus over algorithm bandwidth of {kind} is {seen}: lines are missing, or "
            "this is another collective."
        )
    if len(counts) != 1:
        between = f"{counts[0]} to {counts[-1]}" if len(counts) else "no number that is possible"
        raise FileError(
            f"the number of ranks is not known: no complete list of `#  Rank` lines is in it, and by its bandwidths it "
            f"is {between}. Give the output with its device lines."
        )
    return counts[0]


def _nodes(devices: Sequence[TestedDevice]) -> int:
    """Returns how many nodes share the ranks evenly, neighbours together; 1 where they do not."""
    if not devices:
        return 1
    hosts = [device.host for device in devices]
    names = list(dict.fromkeys(hosts))
    each, rest = divmod(len(hosts), len(names))
    if rest or len(names) < 2 or any(hosts[i] != names[i // each] for i in range(len(hosts))):
        return 1
    return len(names)


def _sizes(sizes: Sequence[int]) -> str:
    shown = ", ".join(print_bytes(size) for size in sizes[:5])
    return shown if len(sizes) <= 5 else f"{shown} and {len(sizes) - 5} more"
