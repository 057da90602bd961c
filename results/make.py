"""Makes what stands in this folder, each by one command, and knows what is stale.

    python results/make.py                 makes what is missing or stale; started again, it goes on
    python results/make.py map validate    makes these
    python results/make.py --check         says what is stale, and why
    python results/make.py --keep "why"    keeps what is stale, and says so with this reason in README.md

A result is stale when the code that it depends on is not the code that made it: a hash of the syntax trees, without
docstrings, comments and what methods say of themselves, and of the data files. README.md says for each result which
command made it, at which commit, on which machine, and whether it is stale. tests/test_results.py holds that page to
what is so.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys
from dataclasses import dataclass

from tightwire.cli import made

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
KEPT = FOLDER / "made.json"
PAGE = FOLDER / "README.md"
# What a prediction, and what a method does to a loss, depends on.
PREDICTION = (
    "answers.py",
    "plan.py",
    "architecture",
    "compression",
    "schedule",
    "simulate",
    "planner",
    "sync",
)
WORDS = frozenset({"paper", "promise", "seen", "title"})  # of a method, for its pages
METHODS = (
    "answers.py",
    "architecture",
    "averaging",
    "compression",
    "kernels",
    "optim.py",
    "schedule",
    "sync",
)


@dataclass(frozen=True)
class Result:
    """What one command makes.

    Attributes:
        command: as a user types it, from the root of the repository.
        files: names in this folder.
        depends_on: files and folders of the package.
        about: what it shows, in a few words.
    """

    command: str
    files: tuple[str, ...]
    depends_on: tuple[str, ...]
    about: str


RESULTS = {
    "tour": Result(
        "tightwire tour --out results/tour",
        ("tour/curves.svg",),
        (*METHODS, "planner", "runtime", "simulate", "tour", "transport", "workloads"),
        "the tour: stock DDP against what is chosen, for the same time each",
    ),
    "map": Result(
        "tightwire map",
        ("map.json", "map.md", "map.html", "map.svg"),
        PREDICTION,
        "which method is best where, predicted",
    ),
    "validate": Result(
        "tightwire validate --without lab --out results/validate.json",
        ("validate.json", "validate.md"),
        (*PREDICTION, "cluster", "parallel", "validate"),
        "predictions held to published measurements",
    ),
    "validate-lab": Result(
        "tightwire validate --only lab --out results/validate-lab.json",
        ("validate-lab.json", "validate-lab.md"),
        (*PREDICTION, "runtime", "transport", "validate"),
        "predictions held to measurements in the lab",
    ),
    "race": Result(
        "tightwire study race --seconds 20 "
        "--contestants 'ddp auto-stale local:8/allreduce/int8 bsp/allreduce/powersgd:4+ef'",
        ("race.json", "race.md"),
        (*METHODS, "planner", "runtime", "study/jobs.py", "study/timed.py"),
        "plans that are found against stock DDP and plans by hand, at equal time",
    ),
    "table": Result(
        "tightwire study table --kept",
        ("table.json", "table.md"),
        (*METHODS, "simulate", "study/table.py", "study/settings.py"),
        "all methods: loss against bytes and against time",
    ),
    "compression": Result(
        "tightwire study compression",
        ("compression.json", "compression.md"),
        (*METHODS, "study/studies/compression.py", "study/settings.py"),
        "what each codec costs in held-out quality, and its bytes",
    ),
    "compression-race": Result(
        "tightwire study compression --time-to-loss --seeds 1 --steps 50 --out results/compression-race.json",
        ("compression-race.json", "compression-race.md"),
        (*METHODS, "study/studies/compression.py", "study/settings.py"),
        "time to the loss that stock DDP ends with",
    ),
    "architecture": Result(
        "tightwire study architecture",
        ("architecture.json", "architecture.md"),
        (*METHODS, "study/studies/architecture.py", "study/settings.py"),
        "what it costs to talk to few workers",
    ),
    "sync": Result(
        "tightwire study sync",
        ("sync.json", "sync.md"),
        (*METHODS, "study/studies/sync.py", "study/settings.py"),
        "what it costs to agree less often, or later",
    ),
    "chaos": Result(
        "tightwire bench chaos --count 1000 --seed 1 --at-once 4 --out results/chaos.json",
        ("chaos.json", "chaos.md"),
        (*METHODS, "bench/chaos", "runtime", "transport"),
        "a thousand runs broken at random moments, and how they ended",
    ),
    "seven-methods": Result(
        "tightwire study seven-methods",
        ("seven_methods.json", "seven_methods.md", "seven_methods.html"),
        ("schedule", "architecture", "runtime", "transport", "bench/step.py"),
        "seven lossless methods beside the published survey",
    ),
    "layers": Result(
        "tightwire study layers",
        ("layers.json", "layers.md"),
        (
            "architecture",
            "averaging",
            "cluster",
            "jobs",
            "lab",
            "parallel",
            "simulate",
            "transport",
            "validate",
        ),
        "five layers: published runs, uneven networks, several jobs, a switch that adds, rates that change",
    ),
}


def fingerprint(result: Result) -> str:
    """Returns a hash of what a result depends on: code without words, and data."""
    digest = hashlib.sha256(result.command.encode())
    for name in result.depends_on:
        path = ROOT / "tightwire" / name
        if not path.exists():
            raise SystemExit(
                f"{PAGE.parent.name}/make.py: {name} is not in tightwire/; mend the list of results."
            )
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            # What is compiled beside the code, as kernels are, is not the code.
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".md", ".so"):
                digest.update(str(file.relative_to(ROOT)).encode())
                digest.update(_meaning(file))
    return digest.hexdigest()[:16]


@functools.cache
def _meaning(file: pathlib.Path) -> bytes:
    """Returns a file's bytes; of Python, what is left of it without docstrings, comments and the places of lines."""
    if file.suffix != ".py":
        return file.read_bytes()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a text alone, or what a method says of itself."""
    is_word = (
        isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in WORDS
    )
    return (
        (is_word or isinstance(node, ast.Expr))
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def records() -> dict[str, dict[str, str]]:
    """Returns what is known of the making of each result, by its name."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def stale(kept: dict[str, dict[str, str]]) -> list[str]:
    """Returns the names of the results that other code made, or that are missing."""
    return [
        name
        for name, result in RESULTS.items()
        if kept.get(name, {}).get("fingerprint") != fingerprint(result)
        or not all((FOLDER / file).exists() for file in result.files)
    ]


def page(kept: dict[str, dict[str, str]]) -> str:
    """Returns README.md of this folder."""
    old = set(stale(kept))
    lines = [
        "# Results",
        "",
        "Each is made by one command; `make results` makes what is stale, and goes on where it was stopped. A result",
        "is stale when the code that it depends on has changed since.",
        "",
        "| result | shows | command | made on | state |",
        "|---|---|---|---|---|",
    ]
    for name, result in RESULTS.items():
        record = kept.get(name, {})
        pages = sorted(result.files, key=lambda file: not file.endswith(".md"))
        there = (file for file in pages if file.endswith((".md", ".svg")) and (FOLDER / file).exists())
        title = f"[{name}]({shown})" if (shown := next(there, None)) else name
        state = f"stale: {record.get('why', 'not made yet')}" if name in old else "fresh"
        lines.append(
            f"| {title} | {result.about} | `{record.get('command', result.command)}` "
            f"| {record.get('machine') or _machine(result)} | {state} |"
        )
    return "\n".join(lines) + "\n"


def _machine(result: Result) -> str:
    """Returns the machine that a result itself names, where no record of its making was kept."""
    for name in result.files:
        path = FOLDER / name
        if path.suffix == ".json" and path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            if told := document.get("machine") or document.get("about", {}).get("machine"):
                return str(told)
    return ""


def write(kept: dict[str, dict[str, str]]) -> None:
    """Stores what is known, and the page."""
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")


def make(name: str, kept: dict[str, dict[str, str]]) -> None:
    """Runs the command of one result and remembers what code made it."""
    result = RESULTS[name]
    print(f"{name}: {result.command}", flush=True)
    before = fingerprint(result)
    if kept.get(name, {}).get("begun") != before:  # what other code began must not be gone on with
        for file in result.files:
            (FOLDER / file).unlink(missing_ok=True)
        kept[name] = kept.get(name, {}) | {"begun": before}
        write(kept)
    subprocess.run([sys.executable, "-m", *shlex.split(result.command)], cwd=ROOT, check=True)
    if fingerprint(result) != before:
        raise SystemExit(f"{name}: the code changed while it was made; make it again.")
    kept[name] = {
        "fingerprint": before,
        "command": result.command,
        "commit": made.commit(),
        "machine": made.machine(),
    }
    write(kept)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(RESULTS)}; all that are stale if none"
    )
    parser.add_argument("--check", action="store_true", help="say what is stale; code 1 where something is")
    parser.add_argument(
        "--keep", metavar="WHY", help="keep what is stale, with a reason that README.md tells"
    )
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(RESULTS):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(RESULTS)}")
    kept = records()
    old = stale(kept)
    if asked.check:
        print("\n".join(f"{name} is stale: {RESULTS[name].command}" for name in old) or "everything is fresh")
        sys.exit(bool(old))
    if asked.keep:
        for name in asked.names or old:
            kept[name] = kept.get(name, {}) | {"why": asked.keep}
        write(kept)
        return
    failed = []
    for name in asked.names or old:
        try:
            make(name, kept)
        except subprocess.CalledProcessError as error:  # the others are made all the same
            print(f"{name}: the command ended with code {error.returncode}", file=sys.stderr, flush=True)
            failed.append(name)
    write(kept)
    sys.exit(f"not made: {', '.join(failed)}; start again to go on with them" if failed else 0)


if __name__ == "__main__":
    main()
