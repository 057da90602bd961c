"""What stands in results/: made by the code of today, or said to be stale, with the reason."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tightwire.catalogue import FAMILIES, catalogue
from tightwire.cli import made
from tightwire.plan import Plan
from tightwire.study.study import STOCK

ROOT = Path(__file__).parents[1]


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_make", ROOT / "results" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = loaded()
KEPT = make.records()


def test_what_is_stale_has_a_reason_that_its_reader_sees() -> None:
    """Mended by `make results`, or, for what takes too long now, by `python results/make.py --keep WHY`."""
    untold = [name for name in make.stale(KEPT) if not KEPT.get(name, {}).get("why")]
    assert not untold, f"stale and not said to be: {', '.join(untold)}; run make results"
    assert make.PAGE.read_text(encoding="utf-8") == make.page(KEPT)


def test_what_was_stopped_goes_on_and_what_other_code_began_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, found = tmp_path / "map.json", []
    result = make.Result("tightwire map", (half.name,), ("units.py",), "a map")
    for name, value in (
        ("RESULTS", {"map": result}),
        ("FOLDER", tmp_path),
        ("KEPT", tmp_path / "made.json"),
        ("PAGE", tmp_path / "README.md"),
    ):
        monkeypatch.setattr(make, name, value)
    monkeypatch.setattr(make.made, "commit", lambda: "commit 1234567")
    monkeypatch.setattr(make.made, "machine", lambda: "2 cores")

    def run(*_: object, **__: object) -> None:
        found.append(half.exists())
        half.write_text("{}", encoding="utf-8")
        if len(found) == 1:
            raise subprocess.CalledProcessError(1, "tightwire map")

    monkeypatch.setattr(make.subprocess, "run", run)
    kept: dict[str, dict[str, str]] = {}
    with pytest.raises(subprocess.CalledProcessError):
        make.make("map", kept)
    assert make.stale(kept) == ["map"]
    make.make("map", kept)
    assert make.stale(kept) == []
    kept["map"]["begun"] = "by other code"
    make.make("map", kept)
    assert found == [False, True, False]


def test_every_file_is_made_by_a_command() -> None:
    made = {file for result in make.RESULTS.values() for file in result.files}
    there = {path.name for path in make.FOLDER.iterdir() if path.is_file()}
    assert there - made == {"README.md", "made.json", "make.py"}


def test_every_table_and_picture_says_what_made_it() -> None:
    """The command, the machine, and the commit, without which only what is said to be stale may be."""
    old = make.stale(KEPT)
    for name, result in make.RESULTS.items():
        for path in (make.FOLDER / file for file in result.files if not file.endswith(".json")):
            if not path.exists():
                assert name in old, path.name
                continue
            text = html.unescape(path.read_text(encoding="utf-8"))
            assert " ".join(result.command.split()[:3]) in text, f"{path.name}: which command?"
            assert re.search(r"\d+ cores .*PyTorch \d", text), f"{path.name}: on which machine?"
            assert name in old or re.search(r"commits? [0-9a-f]{7}", text), f"{path.name}: at which commit?"


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ('"""Says more."""\n# A comment.\nseen: str = "In a table."\nx = 1\n', False),
        ("x = 2\n", True),
        ("x = 1\ny = 3\n", True),
    ],
)
def test_words_do_not_make_a_result_stale_and_code_does(tmp_path: Path, change: str, matters: bool) -> None:
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text('"""Says something."""\nx = 1\n', encoding="utf-8")
    after.write_text(change, encoding="utf-8")
    assert (make._meaning(before) != make._meaning(after)) == matters


TEXT = "## Text:"
DGC = "topk:0.01+ef+momentum:0.9+clip:1.0+warmup:60+min:dims=2"  # what the recipe stands for


def row(page: str, name: str, under: str = "# ") -> dict[str, str]:
    """Returns the first row under a heading that begins with a name, by the table's columns."""
    whole = (ROOT / "results" / page).read_text(encoding="utf-8")
    lines = whole[whole.index(under) :].splitlines()
    tables = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    at = next(number for number, cells in enumerate(tables) if cells[0] == name)
    head = next(cells for cells in reversed(tables[:at]) if cells[0] == "plan")
    return dict(zip(head, tables[at], strict=True))


def test_numbers_of_the_readme_are_those_of_the_results() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    race = {name: row("compression-race.md", name)["to dense's end"] for name in ("ddp", "powersgd:4+ef")}
    hook = row("compression-race.md", "ddp+powersgd:4")["to dense's end"]
    told = (
        f"DDP {race['ddp']}, DDP with PyTorch's PowerSGD hook {hook}, `powersgd:4+ef` {race['powersgd:4+ef']}"
    )
    assert told in readme

    layers = json.loads((ROOT / "results" / "layers.json").read_text(encoding="utf-8"))["parts"].values()
    holds = [one["holds"] for part in layers for one in part]
    assert f"{sum(holds)} of {len(holds)} rows hold" in readme

    for plan in ("bf16", "int8", "int4+ef", "thc+ef"):
        codec = row("compression.md", plan, TEXT)
        assert abs(percent(codec["worse by"])) <= 0.2
        assert 2 <= float(codec["less"].removesuffix("×")) < 8
    assert f"`int2+ef` at +{percent(row('compression.md', 'int2+ef', TEXT)['worse by']):.1f} %" in readme
    dgc = row("compression.md", DGC, TEXT)
    assert f"`dgc` {-percent(dgc['worse by']):.1f} % better than dense" in readme

    page = (ROOT / "results" / "race.md").read_text(encoding="utf-8")
    behind = re.search(r"behind stock DDP at equal time in (\d+ of \d+)", page)
    reached = re.search(r"reaches stock DDP's final loss in (\S+) of its time \(median; (\d+) of", page)
    assert behind is not None
    assert reached is not None
    lower = statistics.median(
        -percent(line.split("|")[6].strip()) for line in page.splitlines() if "| auto-stale |" in line
    )
    assert f"in {reached[1]} of DDP's time (median of the {reached[2]} that do)" in readme
    assert (
        f"[behind in {behind[1]}](results/race.md), with a loss {lower:.1f} % lower in the median" in readme
    )

    uneven = [
        line.split("|")[3].strip()
        for line in (ROOT / "results" / "layers.md").read_text(encoding="utf-8").splitlines()
        if re.search(r": faster than \S+, the best built-in", line)
    ]
    assert f"{' and '.join(uneven)} × as fast as the best built-in" in readme


def plans_in(value: object) -> Iterator[str]:
    """Yields every plan of a file of results."""
    if isinstance(value, dict):
        yield from (text for key, text in value.items() if key == "plan")
        value = list(value.values())
    for one in value if isinstance(value, list) else ():
        yield from plans_in(one)


def test_results_that_a_method_names_have_a_row_of_it() -> None:
    naming = [
        (member.name, page)
        for axis in FAMILIES
        for member in catalogue(axis).values()
        for page in re.findall(r"results/(\w+)\.md", member.seen)
    ]
    studied = {
        page: {
            part.name
            for text in set(plans_in(json.loads((ROOT / "results" / f"{page}.json").read_text("utf-8"))))
            if text not in STOCK
            for part in Plan.parse(text).members()
        }
        for page in {page for _, page in naming}
    }
    assert studied
    assert not [f"{name} in {page}" for name, page in naming if name not in studied[page]]


def test_the_tour_of_the_readme_is_the_one_that_is_drawn() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = re.search(
        r"its PowerSGD hook (\S+) s, the best lossless plan (\S+) s, a race .*? costs (\S+) s", readme
    )
    assert told is not None
    drawn = (ROOT / "results" / "tour" / "curves.svg").read_text(encoding="utf-8")
    assert re.findall(r"there in (\d+) s", drawn) == [f"{float(seconds):.0f}" for seconds in told.groups()]


def test_numbers_of_the_planner_s_page_are_those_of_its_validation() -> None:
    page = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    tables = json.loads((ROOT / "results" / "validate.json").read_text(encoding="utf-8"))["tables"]
    held_out = {row["name"]: row for row in tables if row["held_out"]}
    assert f"IP over InfiniBand): {100 * held_out['seven methods, more']['mape']:.1f} %" in page
    assert f"*Seven methods*: rank correlation {held_out['seven methods']['spearman']:.2f}" in page
    assert f"FSDP ({100 * held_out['FSDP']['mape']:.0f} %)" in page


def percent(cell: str) -> float:
    return float(cell.removesuffix("%"))


def test_a_commit_is_marked_where_its_code_differs_and_not_where_results_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, results = tmp_path / "tightwire" / "cli" / "made.py", tmp_path / "results" / "map.md"
    for file in (code, results, tmp_path / "pyproject.toml"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    monkeypatch.setattr(made, "__file__", str(code))
    assert made.commit().startswith("tightwire ")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for asked in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *asked], check=True)
    results.write_text("made anew")
    assert re.fullmatch("commit [0-9a-f]{8}", made.commit())
    code.write_text("1")
    assert re.fullmatch(r"commit [0-9a-f]{8}\+", made.commit())
