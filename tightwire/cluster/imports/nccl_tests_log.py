"""What nccl-tests and rccl-tests print: the tables of every version, and their JSON.

Columns and formats: src/common.cu and src/util.cu of NVIDIA/nccl-tests; bus bandwidth: doc/PERFORMANCE.md. Before 2.11
there is no root column where no rank is a root; before 2.0 times are in ms; from 2.19 each half may have four columns
of single iterations. Times lose their decimals from 10 ms and become powers of ten beyond seven digits; device lines
name host and process; launchers put tags before every line, and NCCL writes lines of its own between.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tightwire import files
from tightwire.errors import FileError

TYPES = r"u?int(?:8|16|32|64)|half|float|double|bfloat16|bf16|fp(?:16|32|64)|(?:f8|fp8|float8)\w*"
ROW = re.compile(rf"(?<![\w.])(\d{{1,18}})\s+(\d{{1,18}})\s+({TYPES})(?:\s+(.*))?$")
RANK = re.compile(
    r"#\s+Rank\s+(\d{1,9})\s+(?:Group\s+(\d{1,9})\s+)?Pid\s+(\d{1,18})\s+on\s+(\S+)\s+device\s+(\d{1,9})\s+\[[^\]]*\]\s*(.*)"
)
HEADER = re.compile(r"#\s+(?:size\s+count|bytes\s+N)\s+type\s+(.*)")
BOUNDS = re.compile(r"Out of bounds values\s*:\s*(\d{1,18})\b")
COLLECTIVES = (
    "all_reduce|all_gather|reduce_scatter|alltoallv?|broadcast|reduce|sendrecv|gather|scatter|hypercube"
)
NAME = re.compile(rf"\b({COLLECTIVES})_perf(?:_mpi)?\b")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class TestedDevice:
    """One rank's line."""

    rank: int
    group: int
    pid: int
    host: str
    device: int
    title: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One size's line; out of place where that was measured, else in place. Bandwidths in GB/s, as printed.

    `wrong`: how many results are, of both places. `of`: its words between size and times.
    """

    size: int
    of: tuple[str, ...]
    us: tuple[float, float]  # lowest and highest that are printed so
    seconds: float
    algbw: tuple[float, float]
    busbw: tuple[float, float]
    wrong: float = 0.0

    @property
    def redop(self) -> str:
        """The reduction, "none" for collectives without; empty where none is printed."""
        return self.of[1] if len(self.of) > 1 else ""

    @property
    def has_root(self) -> bool:
        """Whether one rank sends to all, or receives from all."""
        return len(self.of) > 2 and self.of[2].lstrip("+").isdigit()


@dataclass
class NcclTestsRun:
    """One run of one test."""

    collective: str = ""
    devices: list[TestedDevice] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)  # sizes whose lines other output cut
    empty: int = 0
    columns: tuple[str, ...] = ()
    out_of_bounds: int = 0
    attempts: int = 1
    is_over: bool = False

    @property
    def hosts(self) -> tuple[str, ...]:
        """Where its ranks were, each once."""
        return tuple(dict.fromkeys(device.host for device in self.devices))


def read_runs(text: str) -> list[NcclTestsRun]:
    """Returns what a log or JSON tells of runs: of each, at least a device or a size.

    Raises:
        FileError: it is JSON that cannot be read.
    """
    text = _unpacked(text)
    runs = _json(text) if text.lstrip().startswith("{") else _tables(text)
    return [run for run in runs if run.rows or run.broken or run.devices]


def _unpacked(text: str) -> str:
    """Returns the log in JSON lines, as container engines keep it (`{"log": …, "stream": …}`); else the text."""
    first, *_ = text.lstrip().splitlines() or [""]
    key = next((key for key in ("log", "message", "textPayload") if f'"{key}"' in first), None)
    if key is None or not (first.startswith("{") and first.rstrip().endswith("}")):
        return text
    lines = (line for line in text.splitlines() if line.strip())
    records = [files.parse_json(line, f"line {number}") for number, line in enumerate(lines, 1)]
    return "\n".join(str(record.get(key, "")).rstrip("\n") for record in records if isinstance(record, dict))


def _tables(text: str) -> Iterator[NcclTestsRun]:
    """Yields the runs in a log, whatever stands before and between their lines."""
    run = NcclTestsRun()
    named = ""
    for line in text.splitlines():
        line = COLOUR.sub("", line)
        if name := NAME.search(line):
            named = name[1]
            if "Collective test starting" not in line and not (run.devices or run.rows):
                run.collective = named
        begins = "# nThread" in line or "Collective test starting" in line
        if begins and (run.rows or run.is_over):
            yield run
            run = NcclTestsRun()
        run.attempts += "# nThread" in line and bool(run.devices)
        if "Collective test starting" in line or (begins and named and not run.collective):
            run.collective = named
        run.is_over |= "Avg bus bandwidth" in line
        if bounds := BOUNDS.search(line):
            run.out_of_bounds += int(bounds[1])
        if match := RANK.search(line):
            rank, group, pid, host, device, title = match.groups()
            run.devices.append(
                TestedDevice(
                    rank=int(rank),
                    group=int(group or 0),
                    pid=int(pid),
                    host=host,
                    device=int(device),
                    title=title.strip(),
                )
            )
        elif match := HEADER.search(line):
            run.columns = tuple(match[1].split())
            if "cputime" in run.columns:
                raise FileError(
                    "its times are of the processor (-C 1), not of the exchange; run it without -C."
                )
        elif (match := ROW.search(line)) and "NCCL INFO" not in line[: match.start()]:
            _add_row(run, int(match[1]), match[3], (match[4] or "").split())
    yield run


def _add_row(run: NcclTestsRun, size: int, kind: str, cells: list[str]) -> None:
    words = [kind, ""]
    if cells and _number(cells[0]) is None and cells[0] != "N/A":
        words[1] = cells.pop(0)
    has_root = "root" in run.columns if run.columns else len(cells) % 4 == 1
    if has_root and cells:
        words.append(cells.pop(0))
    names = [name for name in run.columns if name not in ("redop", "op", "root", "timestamp")]
    width = len(names) // 2 if names.count("time") == 2 else 4
    halves = [cells[start : start + 4] for start in (0, width) if len(cells) >= start + 3]
    is_count = "#wrong" in run.columns
    wrong = max((_number(half[3]) or 0.0 for half in halves if is_count and len(half) > 3), default=0.0)
    for time, algbw, busbw, *_ in halves:
        if _add(run, size, tuple(words), (time, algbw, busbw), wrong):
            return
    if size == 0:
        run.empty += 1
    else:
        run.broken.append(size)


def _add(
    run: NcclTestsRun, size: int, words: tuple[str, ...], printed: tuple[str, str, str], wrong: float
) -> bool:
    """Adds a row of time, algbw and busbw, unless they are not to be had; returns whether they were."""
    time, algbw, busbw = printed
    us = _number(time)
    if us is None or not _is_possible(size, us):
        return False
    row = Row(
        size=size,
        of=words,
        us=_printed(time),
        seconds=us / 1e6,
        algbw=_printed(algbw),
        busbw=_printed(busbw),
        wrong=wrong,
    )
    run.rows.append(row)
    return True


def _json(text: str) -> Iterator[NcclTestsRun]:
    """Yields the run in a report of `-J`."""
    report = files.parse_json(text, "the report")
    try:
        run = NcclTestsRun(columns=("#wrong",))
        names = [str(r.get("experiment_name") or "") for r in report["results"]] + [
            json.dumps(report.get("args"))
        ]
        found = [match[1] for name in names if (match := NAME.search(name))]
        run.collective = found[0] if found else ""
        for device in report.get("config", {}).get("devices") or []:
            run.devices.append(
                TestedDevice(
                    rank=int(device["rank"]),
                    group=int(device.get("group", 0)),
                    pid=int(device.get("pid", 0)),
                    host=str(device["hostname"]),
                    device=int(device["device"]),
                    title=str(device.get("device_info", "")),
                )
            )
        for result in report["results"]:
            _add_result(run, result)
        run.out_of_bounds = int((report.get("out_of_bounds") or {}).get("count") or 0)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileError(
            f"this is no report of nccl-tests -J: {files.told(error)} while reading it."
        ) from None
    yield run


def _add_result(run: NcclTestsRun, result: Mapping[str, Any]) -> None:
    size = int(result["size"])
    words = tuple(str(result.get(key, "")).strip() for key in ("type", "redop", "root"))
    places = [place for key in ("out_of_place", "in_place") if (place := result.get(key))]
    wrong = max((_number(str(place.get("nwrong"))) or 0.0 for place in places), default=0.0)
    for place in places:
        algbw, busbw = (f"{float(place[key]):.6f}" for key in ("alg_bw", "bus_bw"))
        if _add(run, size, words, (str(place.get("time")), algbw, busbw), wrong):
            return
    if size == 0:
        run.empty += 1
    else:
        run.broken.append(size)


def _is_possible(size: int, us: float) -> bool:
    return 0 < size < 10**15 and 1e-3 < us < 1e12


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _printed(text: str) -> tuple[float, float]:
    """Returns between which values a printed number was rounded."""
    value = _number(text)
    if value is None:
        return 0.0, math.inf
    mantissa, _, power = text.lower().partition("e")
    half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    return max(0.0, value - half), value + half
