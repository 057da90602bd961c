"""Pages that are made from the code: one per family of methods, the API, and the results as they are kept.

A hook of MkDocs; `family_page` and its kin are called by tests too.
"""

from __future__ import annotations

import functools
import html
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tightwire
from tightwire.answers import Axis, Member
from tightwire.architecture import PROGRAMS
from tightwire.architecture.gossip import GRAPHS, METHODS
from tightwire.catalogue import FAMILIES, arguments, catalogue, parse_compression
from tightwire.cli.methods import AXES, describe
from tightwire.compression import Codec
from tightwire.planner import quality

ROOT = pathlib.Path(__file__).parents[1]
NUMEL = 10**6
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


def pages() -> Iterator[tuple[str, str]]:
    """Yields each page that is made: its path and its text."""
    for axis in FAMILIES:
        yield f"methods/{axis}.md", family_page(axis)
    yield "api.md", api_page()
    for path in sorted((ROOT / "results").glob("*.md")):
        text = path.read_text(encoding="utf-8").replace("(map.html)", "(map.md)")
        yield f"results/{path.name}", f"---\nhide: [toc]\n---\n{_breakable(text)}"  # tables are wide


def _breakable(text: str) -> str:
    """Lets a browser break plans, which have no spaces, in tables, and commands only at spaces."""
    plans = re.sub(
        r"^\| [^`\[\n]*",
        lambda row: re.sub(r"[/,+](?=[^\s|\d])", r"\g<0><wbr>", row[0]),
        text,
        flags=re.MULTILINE,
    )
    return re.sub(
        r"^\|.*", lambda row: re.sub(r"`(\S+ [^`|]*--[^`|]*)`", _words, row[0]), plans, flags=re.MULTILINE
    )


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
    made = [
        *((f"allreduce:{n}", r) for n, r in PROGRAMS.items()),
        *((f"gossip:{n}", g) for n, g in (*GRAPHS.items(), *METHODS.items())),
    ]
    headed = {
        *catalogue(axis),
        *(name for name, _ in made),
    }  # what is only predicted has a row and no section
    lines = [f"# {AXES[axis][0].upper()}{AXES[axis][1:]}", "", ABOUT[axis], ""]
    lines += ["| name | what it does |", "|---|---|"]
    for name, row in rows.items():
        linked = f"[`{name}`](#{anchor(name)})" if name in headed else f"`{name}`"
        lines += [f"| {linked} | {row['title']} |"]
    for name, member in catalogue(axis).items():
        lines += ["", f"## {name} {{ #{anchor(name)} }}", "", *_member(member, rows[name])]
    for name, recipe in made if axis == "architecture" else ():
        lines += ["", f"## {name} {{ #{anchor(name)} }}", "", _sentence(recipe.title), ""]
        lines += [f"- **Paper**: {recipe.paper}"] if recipe.paper else []
        lines += [f"- **Rate**: {_rate(rows[name]['rate'])}"]
        lines += _partners(rows[name])
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
        yield f"- **Paper**: {member.paper}"
    yield f"- **Rate**: {_rate(row['rate'])}"
    if member.promise:
        yield f"- **Its paper claims**: {member.promise}"
        yield f"- **Studies here**: {row['seen']}"
    yield from _measured(row["axis"], member.name)
    yield from _partners(row)


def _rate(rate: dict[str, str] | str) -> str:
    """Returns how fast a method is proven to converge; T counts steps, n workers."""
    if isinstance(rate, str):
        return rate
    return f"{rate['bound']}; assumes: {rate['assumes']}; speed-up in workers: {rate['speed_up']} ({rate['paper']})"


def _measured(axis: Axis, name: str) -> Iterator[str]:
    """Yields what the studies found of a method: how many more steps it needs, and where that stands."""
    for text, row in quality.table().get(axis, {}).items():
        if name in {part.partition(":")[0] for part in text.split("+")}:
            page = f"../{row.source.removesuffix('.json')}.md"
            yield (
                f"- **Measured**: `{text}` needs {row.factor:.2f} times as many steps as exact means to the same loss "
                f"(80 %: {row.low:.2f} to {row.high:.2f}); [text task]({page})"
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


def _prose(member: type[Member]) -> Iterator[str]:
    """Yields a class's docstring up to its sections, as Markdown."""
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
