"""What every command prints, at 60, 80 and 120 columns and into a pipe: nothing runs over, no number is cut.

What takes minutes to measure is made up: each field of a row has a value that is long for its type. What is only
computed is computed once, for all widths.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pathlib
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import pytest

import tightwire
from tests.cluster.test_nccl_tests import table
from tests.command_line import tightwire as run
from tests.validate.test_seven_in_lab import cell_of
from tightwire.bench import collectives, goodput, kernels, overhead, planner, server, soak, step, sync
from tightwire.bench import scripts as scripts_bench
from tightwire.cli import application
from tightwire.cluster import Cluster, Fit, Pair
from tightwire.cluster.presets import preset
from tightwire.planner import landscape
from tightwire.planner.candidates import ALLOWANCES
from tightwire.profile import Profile
from tightwire.study.studies import STUDIES
from tightwire.study.table import Entry
from tightwire.study.timed import TimedTrial
from tightwire.tour.tour import PlanResult, TourOptions, TourResult
from tightwire.validate import Point, Table, utilisation
from tightwire.validate.layers import LayerRow
from tightwire.validate.seven_in_lab import PLANS

WIDTHS = (60, 80, 120)
CLI = pathlib.Path(tightwire.__file__).parent / "cli"
LONG = "diloco:64,outer_lr=0.7,outer_momentum=0.9/allreduce:hierarchical/int4+ef/streaming:4,overlap=4"
SENTENCE = (
    "every link of 4 hosts is shaped to 119,553,402 bytes per second in each direction by the kernel's tbf"
)
RUNS = LONG.replace("hierarchical", "ring")
NUMBERS = ("--gradients", "20MB", "--compute", "380ms", "--workers", "8", "--bandwidth", "200mbit")
CLUSTER = (
    "workers: 8\nbandwidth_bytes_per_s: 1.2e+9\nlatency_s: 1.0e-4\nnotes: [measured beside another job]\n"
)
JOBS = (
    "cluster: cluster.yaml\njobs:\n- {name: a-job-with-a-very-long-name, workers: [0, 2], compute_s: 0.55, "
    "exchange_bytes: 40000000}\n- {name: b, workers: [1, 3], compute_s: 0.2, exchange_bytes: 2000000}\n"
)


def made(kind: Any) -> Any:
    """Returns a value of a type: of a dataclass, one whose fields are made up in the same way."""
    if dataclasses.is_dataclass(kind):
        types_of = typing.get_type_hints(kind)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        return typing.cast("type[Any]", kind)(**{field.name: made(types_of[field.name]) for field in fields})
    if isinstance(kind, types.UnionType):
        return made(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)[0]
    if typing.get_origin(kind) is dict:
        key, value = typing.get_args(kind)
        return {made(key): made(value)}
    if typing.get_origin(kind) in (tuple, list):
        return typing.get_origin(kind)()
    return {str: LONG, int: 1_234_567, float: 1234.5678, bool: True}.get(kind)


def rows_of(kind: type[Any], *more: Any) -> Callable[..., Any]:
    """Returns what stands for a measurement: two rows, and what it says beside them."""
    return lambda *_, **__: ([made(kind), made(kind)], *more) if more else [made(kind), made(kind)]


def a_table() -> Table:
    points = tuple(
        Point(name=f"{LONG} at {n} GPUs", group="g", measured=float(n), predicted=n * 1.1) for n in (1, 2, 4)
    )
    return Table(name="seven methods", points=points, better="high", target={"mape": 0.05}, note=SENTENCE)


def a_map() -> list[landscape.MapCell]:
    return [
        landscape.MapCell(
            allow=allow, workers=workers, gigabits=gigabits, compute_s=compute_s, letter="L", plan=LONG,
            speedup=1234.5, fastest="L",
        )
        for allow in ALLOWANCES
        for workers in landscape.WORKERS
        for compute_s in landscape.COMPUTE_S
        for gigabits in landscape.GIGABITS
    ]  # fmt: skip


RACED = {
    "contenders": [
        {"plan": LONG, "predicted_step_s": 1.5, "step_s": 1.4, "loss": 2.3456, "loss_per_s": 0.01, "seconds": 123.4,
     "note": "adopted"}
    ],
    "winner": LONG, "cost_s": 123.4, "why": [SENTENCE],
}  # fmt: skip
GROUPS = ("lab", "cluster", "bench", "study")
NEED = utilisation.Need(model="100B", plan=LONG, gigabits=(1234.5, None, 0.001234))
# What is called, what of it is replaced, and by what; None: it is computed, once.
COMMANDS: list[tuple[tuple[str, ...], str, Any]] = [
    (("methods",), "tightwire.cli.methods:_is_legal", lambda *_: True),
    (("methods", "--rates"), "tightwire.cli.methods:_is_legal", lambda *_: True),
    (("methods", "diloco", "powersgd"), "tightwire.cli.methods:_is_legal", lambda *_: True),
    (("plan", "--profile", "DIR/profile.yaml", *NUMBERS[4:], "--price", "2.745"), "tightwire.cli.plan:recommend", None),
    (
        ("plan", "--profile", "DIR/profile.yaml", *NUMBERS[4:], "--sweep", "bandwidth=1gbit..400gbit"),
        "tightwire.cli.plan:sweep",
        None,
    ),
    (("simulate", RUNS, "bsp/allreduce/int8+ef", *NUMBERS), "tightwire.cli.simulate:predict", None),
    (("cluster", "hardware"), "", None),
    (("cluster", "new", "aws-p5", "--nodes", "4", "--out", "OUT"), "", None),
    (("cluster", "synthesise", "DIR/levels.yaml"), "tightwire.cli.cluster:synthesise", None),
    (("jobs", "DIR/jobs.yaml"), "tightwire.cli.jobs:predict_jobs", None),
    (("map", "--out", "OUT"), "tightwire.cli.map:_cells", a_map),
    (("validate", "--only", "programs", "--points"), "tightwire.cli.validate:TABLES", {"programs": a_table}),
    (("validate", "--utilisation"), "tightwire.validate.utilisation:needs", lambda: [NEED, NEED]),
    (("race", "DIR/jobs.yaml"), "tightwire.cli.race:_run", lambda *_: RACED),
    (
        ("bench", "collectives"),
        "tightwire.bench.collectives:measure",
        rows_of(collectives.CollectiveRow, SENTENCE),
    ),
    (("bench", "step"), "tightwire.bench.step:measure", rows_of(step.StepRow, SENTENCE)),
    (("bench", "server"), "tightwire.bench.server:measure", rows_of(server.ServerRow, SENTENCE)),
    (("bench", "sync"), "tightwire.bench.sync:measure", rows_of(sync.SyncRow, SENTENCE)),
    (("bench", "kernels"), "tightwire.bench.kernels:measure", rows_of(kernels.KernelRow)),
    (("bench", "planner"), "tightwire.bench.planner:measure", rows_of(planner.PlannerRow)),
    (("bench", "overhead"), "tightwire.bench.overhead:measure", lambda *_: made(overhead.Overhead)),
    (("bench", "goodput"), "tightwire.bench.goodput:run", lambda *_: made(goodput.GoodputRow)),
    (("bench", "soak"), "tightwire.bench.soak:run", lambda *_: made(soak.SoakRow)),
    (("bench", "scripts"), "tightwire.bench.scripts:measure", rows_of(scripts_bench.ScriptRow)),
    (("bench", "chaos"), "tightwire.bench.chaos:run_campaign", lambda *_: []),
]  # fmt: skip
GPU_PART = {"name": "a part with a long name", "ok": True, "said": SENTENCE, "seconds": 1234.5}


def a_probe() -> Cluster:
    fits = tuple(
        Fit(program=name, alpha_s=1.23456e-3, beta_s_per_byte=8.3e-9) for name in ("halving-doubling", "ring")
    )
    pair = Pair(
        workers=(0, 1), latency_s=1.23456e-3, bandwidth_bytes_per_s=1.19e8, both_ways_bytes_per_s=1.1e8
    )
    return dataclasses.replace(Cluster.uniform(4, 1.19e8, 1e-4), fits=fits, pairs=(pair,))


def a_tour() -> TourResult:
    rows = [
        PlanResult(
            plan=plan, role=role, steps=1234, seconds=45.6, step_s=0.1234, predicted_step_s=0.1334,
            bytes_per_step=12_345_678, exposed_s=0.0123, heldout_loss=2.3456, trace=None,
            curve=((1.0, 1, 5.4), (45.6, 1234, 2.3456)),
        )
        for plan, role in (("ddp", "ddp"), (LONG, "lossy"))
    ]  # fmt: skip
    return TourResult(options=TourOptions(), plans=rows, facts={"compute_s": 0.1})


def trials(wanted: list[TimedTrial], *_: Any) -> list[TimedTrial]:
    return [
        dataclasses.replace(trial, plan=LONG, steps=1234, loss=2.3456, curve=((20.0, 1234, 2.3456),))
        for trial in wanted
    ]


# Further ones that measure: what stands for the measurement.
COMMANDS += [
    (
        ("parallel", "llama3-8b", "--cluster", "DIR/node.yaml", "--tokens-per-batch", "0.25M", "--top", "2"),
        "tightwire.cli.parallel:parallelise",
        None,
    ),
    (("profile", "--model", "gpt2", "--device", "a100", "--out", "OUT"), "", None),
    (("cluster", "import", "nccl-tests", "DIR/nccl.txt", "--out", "OUT"), "", None),
    (("lab", "jobs", "DIR/jobs.yaml"), "tightwire.cli.lab_jobs:run_jobs", lambda _, jobs, *more, **named: {
        job.name: 1.23456 for job in jobs
    }),
    (("bench", "gpu", "--out", "DIR/here"), "tightwire.bench.gpu:run", lambda **_: {"parts": [GPU_PART, GPU_PART]}),
    (("study", "layers", "--out", "OUT"), "tightwire.cli.layers:PARTS", {
        "transformers": lambda: [made(LayerRow), made(LayerRow)]
    }),
    (
        ("study", "compression", "--tasks", "digits", "--out", "OUT"),
        "tightwire.cli.study:_conduct",
        lambda *asked: asked[2],
    ),
    (
        ("study", "table", "--studies", "", "--tasks", "", "--folder", "DIR/here"),
        "tightwire.study.table:entries",
        lambda *_: [
            dataclasses.replace(made(Entry), task="digits", train_s=(12.3,) * 3, to_loss_s=(6.7, None, 2.0))
        ],
    ),
    (("study", "race", "--jobs", "lstm", "--out", "OUT"), "tightwire.study.equal_time:conduct", trials),
    (("study", "seven-methods", "--out", "OUT"), "tightwire.cli.seven_methods:run", lambda *_: [
        cell_of({method: 1.1 + number / 10 for number, method in enumerate(PLANS)})
    ]),
    (("tour", "--out", "DIR/here"), "tightwire.cli.tour:_take", lambda _: a_tour()),
    (("probe", "--workers", "4", "--out", "OUT"), "tightwire.cli.probe:_probe_lab", lambda *_: a_probe()),
    (("warm", "--codecs", "int8"), "tightwire.compression:compile_kernels", lambda *_: 12.345),
]  # fmt: skip
# What it prints is its script's own.
UNTOUCHED = {"lab run"}
LEVELS = (
    "workers: 8\nbandwidth_bytes_per_s: 1.0e+9\nlatency_s: 1.0e-4\n"
    "levels:\n- {name: node, workers: 4, bandwidth_bytes_per_s: 4.0e+9}\n"
    "- {name: cluster, workers: 8, bandwidth_bytes_per_s: 1.0e+9}\n"
)


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, computed once for the same arguments."""
    known: dict[str, Any] = {}

    def remembered(*arguments: Any, **settings: Any) -> Any:
        key = repr((arguments, settings))
        if key not in known:
            found = function(*arguments, **settings)
            known[key] = list(found) if isinstance(found, types.GeneratorType) else found
        return known[key]

    return remembered


@pytest.mark.parametrize(("command", "replaced", "by"), COMMANDS, ids=[" ".join(c[0][:2]) for c in COMMANDS])
def test_what_commands_print_fits_and_no_number_is_cut(
    command: tuple[str, ...],
    replaced: str,
    by: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in (("cluster", CLUSTER), ("jobs", JOBS), ("levels", LEVELS)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "nccl.txt").write_text("\n".join(table()), encoding="utf-8")
    preset("dgx-h100", 1).write(tmp_path / "node.yaml")
    (tmp_path / "here").mkdir()
    model = Profile.uniform(layers=4, numel_per_layer=10**6, forward_s=0.1, backward_s=0.2)
    model.write(tmp_path / "profile.yaml")
    monkeypatch.chdir(tmp_path)
    for page in ("tightwire.validate.seven_report.plot", "tightwire.tour.report._page"):
        monkeypatch.setattr(page, lambda *_: "")  # seconds each
    if replaced:
        module, _, name = replaced.partition(":")
        found = importlib.import_module(module)
        monkeypatch.setattr(found, name, once(getattr(found, name)) if by is None else by)
    called = [part.replace("DIR/", "").replace("OUT", "out.json") for part in command]
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = run(*called)
    assert piped.stdout, piped
    numbers = set(re.findall(r"\d[\d,.]*\d", piped.stdout.replace(LONG, "")))
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        ended = run(*called)
        lines = ended.stdout.splitlines()
        assert [line for line in (*lines, *ended.stderr.splitlines()) if len(line) > width] == []
        text = " ".join(line.strip() for line in lines)
        assert {number for number in numbers if number not in text} == set()


def test_every_command_is_looked_at() -> None:
    root = application()
    found = set()
    for name in root.list_commands(None):
        under = getattr(root.get_command(None, name), "commands", {None: None})
        found |= {
            f"{name} {part}" if part else name for part, c in under.items() if c is None or not c.hidden
        }
    looked_at = {" ".join(called[: 1 + (called[0] in GROUPS)]) for called, *_ in COMMANDS}
    # Those of one kind print alike: the studies that train.
    alike = {f"study {name}" for name in STUDIES}
    assert found - looked_at - alike - UNTOUCHED == set()


def test_commands_print_by_one_door() -> None:
    """Sentences go through `say` and tables through `print_rows`, which know the width; `typer.echo` does not."""
    # JSON, lines that are laid out already, and what a worker said.
    allowed = ("json.dumps(", "line", "f'[{line.rank}]")
    found = []
    for path in CLI.rglob("*.py"):
        if path.name in ("table.py", "methods.py"):  # the door; a matrix of fixed columns
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "typer.echo":
                continue
            if node.args and (
                isinstance(node.args[0], ast.IfExp) or not ast.unparse(node.args[0]).startswith(allowed)
            ):
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert found == []
