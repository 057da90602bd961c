"""The house: imports point upward only, what must not need torch does not, one file speaks to torch.distributed."""

import ast
import functools
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

import tightwire

ROOT = Path(tightwire.__file__).parent

# A module may import only from those before it, also inside functions.
ORDER = (
    "errors", "units", "ways", "files", "pages", "answers", "extensions", "catalogue", "buckets", "kernels", "devices",
    "transport", "sync", "compression", "schedule", "architecture", "averaging", "plan", "cluster", "profile", "probe",
    "simulate", "planner", "parallel", "jobs", "large_batch", "optim", "runtime", "_attach", "workloads", "lab",
    "bench", "study", "validate", "tour", "integrations", "cli",
)  # fmt: skip

# Planning needs no torch.
TORCH_FREE = (
    "tightwire", "tightwire.errors", "tightwire.units", "tightwire.ways", "tightwire.files", "tightwire.pages",
    "tightwire.answers",
    "tightwire.extensions", "tightwire.catalogue", "tightwire.transport", "tightwire.sync", "tightwire.compression",
    "tightwire.schedule", "tightwire.architecture", "tightwire.architecture.allreduce.program",
    "tightwire.architecture.allreduce.builders",
    "tightwire.architecture.allreduce.checker", "tightwire.averaging", "tightwire.plan", "tightwire.cluster",
    "tightwire.profile", "tightwire.simulate", "tightwire.planner", "tightwire.parallel", "tightwire.jobs",
)  # fmt: skip

# Loaded only by what uses them, for they take longer than torch forgives.
HEAVY = ("numba", "pydantic", "typer", "rich", "scipy", "networkx", "plotly", "yaml")

# Where stock DDP is run for comparison; else only the torch transport speaks to torch.distributed.
RUNS_STOCK_DDP = ("lab", "bench", "study", "tour")
WORKS_INSIDE_TRAINERS = ("integrations",)

FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """Returns the family of a file: `plan` of plan.py, `attach` of attach/run.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Returns what stands in a file, of the kinds that are looked at here: imports, classes, attributes."""
    walked = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return tuple(
        n for n in walked if isinstance(n, ast.Import | ast.ImportFrom | ast.ClassDef | ast.Attribute)
    )


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    """Returns the full name of every module or name that a file imports, wherever it does."""
    names: list[str] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def module_of(path: Path) -> str:
    return ".".join(["tightwire", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imported_modules(path: Path) -> Iterator[str]:
    """Yields the modules of ours that a file imports, wherever it does; a package that it is in does not count."""
    here = module_of(path)
    for imported in imports(path):
        module = imported if imported in MODULES else imported.rpartition(".")[0]
        if module in MODULES and module != here and not here.startswith(f"{module}."):
            yield module


def loaded_by(code: str) -> set[str]:
    """Returns the modules that a fresh interpreter holds after running `code`."""
    show = "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_imports_point_upward() -> None:
    for path in FILES:
        here = part_of(path)
        if here in ("__init__", "__main__"):
            continue  # the public names, and the door to the command line
        assert here in ORDER, f"{here} has no place in the order"
        for imported in imports(path):
            parts = imported.split(".")
            if parts[0] == "tightwire" and len(parts) > 1 and parts[1] != here:
                assert parts[1] in ORDER, f"{name_of(path)} imports {imported}"
                assert ORDER.index(parts[1]) < ORDER.index(here), (
                    f"{name_of(path)} imports {imported}, which comes after it in the order"
                )


def test_one_file_speaks_to_torch_distributed() -> None:
    allowed = ("transport", *RUNS_STOCK_DDP, *WORKS_INSIDE_TRAINERS)
    for path in FILES:
        spoken = [name for name in imports(path) if name.startswith("torch.distributed")]
        assert not spoken or part_of(path) in allowed, name_of(path)


def test_one_package_asks_which_device_there_is() -> None:
    """`tensor.is_cuda` and `torch.cuda` elsewhere would be a second contract, which no traced device emulates."""
    asked = [
        f"{name_of(path)}, line {node.lineno}"
        for path in FILES
        if part_of(path) != "devices"
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and (
            node.attr == "is_cuda"
            or (node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch")
        )
    ]
    assert not asked


def test_planning_needs_no_torch() -> None:
    loaded = loaded_by("\n".join(f"import {name}" for name in TORCH_FREE))
    assert "torch" not in loaded


def test_importing_costs_little() -> None:
    assert not loaded_by("import tightwire") & {"torch", *HEAVY}


def test_a_training_script_loads_little_and_attach_can_be_called_whatever_came_before() -> None:
    # In one interpreter, for loading torch takes seconds.
    added = loaded_by(
        "import sys, torch\nbefore = set(sys.modules)\nimport tightwire.runtime\n"
        "added = set(sys.modules) - before\n"
        f"assert not added & {set(HEAVY)}, added\n"
        "from tightwire.runtime.run import Run\nimport tightwire\nassert callable(tightwire.attach)"
    )
    assert "tightwire.runtime" in added
    loaded_by("import tightwire\ntightwire.Run\nassert callable(tightwire.attach)")


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_of(path): set(imported_modules(path)) for path in FILES}
    circles = list(networkx.simple_cycles(networkx.DiGraph(graph), length_bound=6))
    assert not circles


def test_the_public_face() -> None:
    assert sorted(tightwire.__all__) == tightwire.__all__
    assert dir(tightwire) == tightwire.__all__
    for name in tightwire.__all__:
        assert getattr(tightwire, name).__doc__, f"{name} says nothing of itself"
    with pytest.raises(AttributeError, match="it has Cluster, Plan"):
        _ = tightwire.nothing
    # Only names in __all__ are bound to things of ours: submodules and dunders aside, nothing else is public.
    submodules = {m.name for m in pkgutil.iter_modules(tightwire.__path__)}
    loose = {name for name in vars(tightwire) if not name.startswith("_")}
    assert loose - set(tightwire.__all__) - submodules <= {"importlib", "annotations", "Any", "TYPE_CHECKING"}


def test_packages_name_what_they_offer() -> None:
    for package in (p for p in FILES if p.name == "__init__.py" and p.parent != ROOT):
        module = importlib.import_module(module_of(package))
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{module.__name__} offers {name}"


def test_two_classes_do_not_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and not node.col_offset and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    shared = {name: files for name, files in places.items() if len(files) > 1}
    assert not shared
