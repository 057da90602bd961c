"""Pages that are made from the code: one per family of methods, the API, and the results as they are kept.

A hook of MkDocs; `family_page` and its kin are called by tests too.
"""

from __future__ import annotations

import functools
import html
import inspect
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tightwire
from tightwire.answers import Axis, Member
from tightwire.architecture import PROGRAMS
from tightwire.architecture.allreduce.builders import build
from tightwire.architecture.gossip import GRAPHS, METHODS
from tightwire.catalogue import FAMILIES, arguments, catalogue, parse_compression
from tightwire.cli.methods import AXES, describe
from tightwire.compression import Codec
from tightwire.plan import Plan

ROOT = pathlib.Path(__file__).parents[1]
NUMEL = 10**6
RANKS = 8
ABOUT: dict[Axis, str] = {
    "sync": "A policy says after which steps the workers exchange something, what they exchange, and whether anyone "
    "waits. It is the first part of a plan: `local:8/allreduce/none`.",
    "architecture": "The architecture says which worker sends to which. It is the second part of a plan: "
    "`bsp/allreduce:ring`. An all-reduce is carried out by a *program*; gossip follows a *graph*.",
    "compression": "The compression says what a message holds. It is the third part of a plan: a sender, and stages "
    "around it joined by `+`: `topk:0.01+ef`. Error feedback (`+ef`) adds what one message left out to the next.",
    "schedule": "The schedule says in which order buckets travel, and how they are cut. It is the last part of a plan: "
    "`bsp/allreduce/none/mgwfbp`. No schedule changes what is learned.",
}
MEASURED = (
    "Where a method was studied, a table compares it with exact means, each with the rate that suits it: by how much "
    "its loss on held-out text, or its accuracy on images and digits, is worse; how many times as many steps it needs "
    "to their loss on text; and for as many steps, what share of their bytes it sends, and of their time it takes on "
    "lines of these rates. Times are predicted. [All methods in one table](../results/table.md) has more.\n"
    "{: #measured }"
)
SECTIONS = re.compile(r"^(Args|Attributes|Class attributes|Raises|Returns|Contract)\b.*:")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made, and the pictures of results."""
    from mkdocs.structure.files import File

    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    for picture in (ROOT / "results").rglob("*.svg"):
        path = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, path, content=picture.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leads links of docs/ to results/, which stands beside it in a checkout, to the pages that are made of it."""
    return markdown if "/" in page.file.src_uri else markdown.replace("](../results/", "](results/")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Keeps options such as --out whole: a browser would break them behind a hyphen."""
    return re.sub(
        r"(<code>)(.*?)(</code>)",
        lambda code: (
            code[1]
            + re.sub(r"(?<![\w-])--?[a-z][\w-]*", r'<span class="word">\g<0></span>', code[2])
            + code[3]
            if "<" not in code[2]
            else code[0]
        ),
        html,
        flags=re.DOTALL,
    )


def pages() -> Iterator[tuple[str, str]]:
    """Yields each page that is made: its path and its text."""
    for axis in FAMILIES:
        yield f"methods/{axis}.md", family_page(axis)
    yield "api.md", api_page()
    for path in sorted((ROOT / "results").glob("*.md")):
        text = path.read_text(encoding="utf-8").replace("(map.html)", "(map.md)")
        yield f"results/{path.name}", f"---\nhide: [toc]\n---\n{_breakable(text)}"  # tables are wide


def _breakable(text: str) -> str:
    """Lets a browser break plans, which have no spaces, in tables, and commands only at spaces; long ones have room."""
    plans = re.sub(r"^\| [^`\[\n]*", _with_breaks, text, flags=re.MULTILINE)
    return re.sub(
        r"^\|.*", lambda row: re.sub(r"`(\S+ [^`|]*--[^`|]*)`", _words, row[0]), plans, flags=re.MULTILINE
    )


def _with_breaks(row: re.Match[str]) -> str:
    """Returns a row whose plans may be broken at their joints, though not before +ef; a long one has room."""
    first, *rest = re.sub(r"[/,+](?=[^\s|\d])(?!ef\b)", r"\g<0><wbr>", row[0][2:]).split("|")
    is_long = len(first.strip().replace("<wbr>", "")) > 40 and " " not in first.strip()
    return "| " + "|".join([f'<span class="plan">{first.strip()}</span> ' if is_long else first, *rest])


def _words(command: re.Match[str]) -> str:
    """Returns a command whose options, such as --out, are not broken behind a hyphen."""
    words = " ".join(f'<span class="word">{html.escape(word)}</span>' for word in command[1].split())
    return f"<code>{words}</code>"


@functools.cache
def _rows() -> list[dict[str, Any]]:
    return list(describe())


def family_page(axis: Axis) -> str:
    """Returns the page of one family: every member, with what it says of itself."""
    rows = {row["name"]: row for row in _rows() if row["axis"] == axis}
    made: list[tuple[str, Any]] = [
        *((f"allreduce:{n}", r) for n, r in PROGRAMS.items()),
        *((f"gossip:{n}", g) for n, g in (*GRAPHS.items(), *METHODS.items())),
    ]
    headed = {
        *catalogue(axis),
        *(name for name, _ in made),
    }  # what is only predicted has a row and no section
    lines = [f"# {AXES[axis][0].upper()}{AXES[axis][1:]}", "", ABOUT[axis], "", MEASURED, ""]
    lines += ["| name | what it does |", "|---|---|"]
    for name, row in rows.items():
        linked = f"[`{name}`](#{anchor(name)})" if name in headed else f"`{name}`"
        lines += [f"| {linked} | {row['title']} |"]
    for name, member in catalogue(axis).items():
        lines += ["", f"## {name} {{ #{anchor(name)} }}", "", *_member(member, rows[name])]
    for name, recipe in made if axis == "architecture" else ():
        lines += ["", f"## {name} {{ #{anchor(name)} }}", "", *_told(recipe), ""]
        lines += [f"- **Paper**: {_linked(recipe.paper)}"] if recipe.paper else []
        lines += [f"- **In a plan**: `bsp/{name}`"] if name != "gossip:ad-psgd" else []
        lines += _bytes_of_program(name)
        lines += [f"- **Rate**: {_linked(_rate(rows[name]['rate']))}"]
        lines += _partners(rows[name])
        lines += _measured("architecture", name)
    return "\n".join(lines) + "\n"


def anchor(name: str) -> str:
    """Returns what a method's heading is linked by."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _member(member: type[Member], row: dict[str, Any]) -> Iterator[str]:
    yield from _prose(member)
    yield ""
    yield f"- **In a plan**: `{member.example or member.name}`"
    taken = arguments(member)
    if taken:
        yield "- **Arguments**: " + ", ".join(f"`{one}`" for one in taken)
    if issubclass(member, Codec):
        yield f"- **Bytes**: {_bytes(member)}"
    if member.paper:
        yield f"- **Paper**: {_linked(member.paper)}"
    yield f"- **Rate**: {_linked(_rate(row['rate']))}"
    if member.promise:
        yield f"- **Its paper claims**: {member.promise}"
        yield f"- **Studies here**: {_linked(row['seen'])}"
    yield from _partners(row)
    yield from _measured(row["axis"], member.name)


def _rate(rate: dict[str, str] | str) -> str:
    """Returns how fast a method is proven to converge; T counts steps, n workers."""
    if isinstance(rate, str):
        return rate
    return f"{rate['bound']}; assumes: {rate['assumes']}; speed-up in workers: {rate['speed_up']} ({rate['paper']})"


def _linked(text: str) -> str:
    """Returns a text whose mentions of pages of results, and of papers on arXiv, are links."""
    text = re.sub(r"results/(\w+)\.md", r"[results/\1.md](../results/\1.md)", text)
    return re.sub(r"(?:arXiv:|\b)(\d{4}\.\d{5})\b", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _bytes_of_program(name: str) -> Iterator[str]:
    """Yields what a program of an all-reduce sends and how often it waits, by its transfers."""
    short = name.removeprefix("allreduce:")
    if short == name or (program := build(short, RANKS)).native:
        return
    chunks = program.chunk_sizes(NUMEL)
    busiest = max(program.bytes_sent(rank, chunks) for rank in range(RANKS)) / NUMEL
    steps = len(list(program.steps()))
    yield f"- **Bytes**: among {RANKS} workers the busiest sends {busiest:.2f} times a message, in {steps} steps"


@functools.cache
def _studied() -> list[tuple[Plan, dict[str, Any]]]:
    """Returns what the table of all studies says, on the text task and on others, each with its plan."""
    rows = json.loads((ROOT / "results" / "table.json").read_text(encoding="utf-8"))["rows"]
    return [(Plan.parse(row["plan"]), row) for row in rows]


def _measured(axis: Axis, name: str) -> Iterator[str]:
    """Yields what the studies found of a method: what it costs in held-out quality, in steps, in bytes and in time."""
    if axis == "schedule" and name != "streaming":
        yield from _timed(name)
        return
    labels = dict.fromkeys(
        (row["study"], row["label"]) for plan, row in _studied() if _is_of(plan, row, axis, name)
    )
    if not labels:
        return
    yield ""
    yield "**Measured** ([how to read it](#measured)):"
    yield ""
    yield "| method | text | images | digits | steps | bytes | 50 Mb/s | 200 Mb/s | 1 Gb/s |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for study, label in labels:
        yield f"| `{label.removesuffix('/sequential')}` | {' | '.join(_cells(study, label))} |"


def _is_of(plan: Plan, row: dict[str, Any], axis: Axis, name: str) -> bool:
    """Whether a row of the studies is of a method: on its own axis, with nothing else that is studied."""
    if axis == "schedule":
        return plan.schedule.name == name
    if axis == "sync":
        return row["study"] == "sync" and plan.sync.name == name != "bsp"
    if axis == "architecture":
        return row["study"] == "architecture" and _is_of_architecture(plan, name)
    names = [part.name for part in plan.compression]
    parts = parse_compression(catalogue("compression")[name].example or name)
    if name not in {part.name for part in parts}:  # a recipe stands for its parts
        return plan.compression == parts if len(parts) == 1 else names == [part.name for part in parts]
    return name in names and name != "none" and row["study"] == _study_of(name)


def _is_of_architecture(plan: Plan, name: str) -> bool:
    """Whether a plan's messages, which hold all, go by a server or along a graph that is named, or by a method."""
    kind, _, rest = name.partition(":")
    if plan.architecture.name != kind or kind == "allreduce" or plan.compression[0].name != "none":
        return False
    graph, method = (getattr(plan.architecture, field, "") for field in ("graph", "method"))
    if rest in GRAPHS:
        return (graph, method) == (rest, "d-psgd")
    if rest in METHODS and rest != "d-psgd":
        return bool(method == rest)
    return kind == "ps" or (graph, method) == ("ring", "d-psgd")


@functools.cache
def _study_of(name: str) -> str:
    """Returns the study that a part of compressions is in: the one of compression, if it is there."""
    found = {row["study"] for plan, row in _studied() if name in {part.name for part in plan.compression}}
    return "compression" if "compression" in found else next(iter(sorted(found)), "")


def _cells(study: str, label: str) -> Iterator[str]:
    """Yields the cells of a row of what was measured."""
    rows = {row["task"]: row for _, row in _studied() if (row["study"], row["label"]) == (study, label)}
    for task in ("text", "images", "digits"):
        worse = rows[task]["worse_by"] if task in rows else None
        yield "–" if worse is None else f"{round(100 * worse, 1) + 0.0:+.1f} %"  # never -0.0
    (dense,) = [
        row
        for _, row in _studied()
        if (row["study"], row["task"]) == (study, "text")
        and row["label"] in ("none", "bsp/allreduce/none/sequential")
    ]
    row = rows["text"]
    yield f"{row['times_steps']:.2f} ×" if row["times_steps"] else "–"
    yield _share(row["sent_bytes"] / dense["sent_bytes"])
    yield from (_share(mine / theirs) for mine, theirs in zip(row["train_s"], dense["train_s"], strict=True))


def _share(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def _timed(name: str) -> Iterator[str]:
    """Yields what a step took under a schedule, beside one exchange after backward."""
    cells = json.loads((ROOT / "results" / "seven_methods.json").read_text(encoding="utf-8"))["cells"]
    rows = [row for cell in cells for row in cell["rows"] if Plan.parse(row["plan"]).schedule.name == name]
    for method in dict.fromkeys(row["method"] for row in rows):
        ratios = [row["speedup"] for row in rows if row["method"] == method]
        yield (
            f"- **Measured**: as {method} it makes {min(ratios):.2f} to {max(ratios):.2f} times as many steps per "
            f"second as one all-reduce after backward, in {len(ratios)} cells at 1 Gb/s; "
            "[seven methods](../results/seven_methods.md)"
        )


def _partners(row: dict[str, Any]) -> Iterator[str]:
    for axis, texts in row["combines_with"].items():
        rest = [text for text in _all_partners(axis) if text not in texts]
        if not texts:
            told = "nothing"
        elif not rest:
            told = "all"
        elif len(rest) < len(texts):
            told = f"all but {', '.join(f'`{text}`' for text in rest)}"
        else:
            told = ", ".join(f"`{text}`" for text in texts)
        yield f"- **Goes with {axis}**: {told}"


@functools.cache
def _all_partners(axis: str) -> tuple[str, ...]:
    """Returns what some member goes with on an axis, in the order of the catalogue."""
    return tuple(dict.fromkeys(text for row in _rows() for text in row["combines_with"].get(axis, ())))


def _bytes(member: type[Codec]) -> str:
    (codec, *_) = parse_compression(member.example or member.name)
    assert isinstance(codec, Codec)
    num_bytes = codec.wire_bytes(NUMEL)
    return (
        f"`{codec}` sends {num_bytes:,} bytes for {NUMEL:,} float32 elements: {8 * num_bytes / NUMEL:.2f} bits each, "
        f"{4 * NUMEL / num_bytes:.1f} times fewer than dense."
    )


def _told(recipe: Any) -> Iterator[str]:
    """Yields what a program or a graph does, with its formula; of a method of gossip, its title."""
    build = getattr(recipe, "build", None)
    yield from _prose(build) if getattr(build, "__doc__", None) else (_sentence(recipe.title),)


def _prose(member: Any) -> Iterator[str]:
    """Yields a docstring up to its sections, as Markdown."""
    for line in inspect.cleandoc(member.__doc__ or "").splitlines():
        if SECTIONS.match(line) or line.startswith(">>>"):
            return
        yield line


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def api_page() -> str:
    """Returns the page of all that `import tightwire` offers: functions, then classes, by the alphabet."""
    lines = [
        "# API",
        "",
        "All names are available as `tightwire.NAME`; the usual import is `import tightwire as tw`.",
        "",
    ]
    for name in sorted(tightwire.__all__, key=lambda name: (name[0].isupper(), name)):
        thing = getattr(tightwire, name)
        lines += [f"::: {thing.__module__}.{getattr(thing, '__qualname__', name)}", ""]
    return "\n".join(lines)
