"""Plans: one text form, read back as it was printed; every illegal combination refused with a way out."""

import dataclasses
import pathlib
import re
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tightwire.answers import DEFAULTS, Axis, Member, text_with
from tightwire.architecture import PROGRAMS, AllReduce
from tightwire.catalogue import FAMILIES, catalogue, parse_member
from tightwire.compression import DenseEvery, Int8, Least, Momentum, TopK
from tightwire.errors import FileError, PlanError
from tightwire.plan import Plan, PlanFile, Route
from tightwire.schedule import Fusion
from tightwire.sync import HierarchicalLocal, Local
from tightwire.units import parse_bytes, print_bytes

COUNTS = st.integers(1, 10**6)
RATIOS = st.floats(0, 1, exclude_min=True)
BLOCKS = st.integers(1, 1000).map(lambda n: 8 * n)

REQUIRED = {int: st.integers(1, 64), float: RATIOS}

# Members with any legal arguments; those without a line here are tried with what they must have.
ARGUMENTS: dict[Axis, dict[str, st.SearchStrategy[Any]]] = {
    "sync": {
        "local": st.builds(Local, COUNTS),
        "hierarchical-local": st.builds(
            lambda inside, times: HierarchicalLocal(inside, inside * times),
            st.integers(1, 64),
            st.integers(1, 8),
        ),
    },
    "architecture": {"allreduce": st.builds(AllReduce, st.sampled_from(["auto", *PROGRAMS]))},
    "compression": {
        "int8": st.builds(Int8, BLOCKS, st.sampled_from(["nearest", "stochastic"])),
        "topk": st.builds(TopK, RATIOS),
        "momentum": st.builds(Momentum, st.floats(0, 1, exclude_max=True)),
        "dense-every": st.builds(DenseEvery, st.integers(2, 64)),
        "min": st.builds(Least, COUNTS, st.integers(0, 4)),
    },
    "schedule": {"fusion": st.builds(Fusion, COUNTS)},
}


def made(axis: Axis, name: str) -> st.SearchStrategy[Any]:
    """Returns a member with any arguments listed above, or with those it must have."""
    member = catalogue(axis)[name]
    types = typing.get_type_hints(member)
    fields = [f for f in dataclasses.fields(member) if f.default is dataclasses.MISSING]
    needed = {f.name: REQUIRED[types[f.name]] for f in fields}
    return ARGUMENTS[axis].get(name, st.builds(member, **needed))


def texts_of(axis: Axis) -> st.SearchStrategy[str]:
    return st.one_of(*(made(axis, name) for name in catalogue(axis))).map(str)


# Any four answers, whether or not they go together.
TEXTS = st.tuples(
    texts_of("sync"),
    texts_of("architecture"),
    st.lists(texts_of("compression"), min_size=1, max_size=3).map("+".join),
    texts_of("schedule"),
).map("/".join)


@pytest.mark.parametrize("axis", FAMILIES)
def test_every_member_says_what_it_is(axis: Axis) -> None:
    for name, member in catalogue(axis).items():
        assert member.axis == axis
        assert member.title
        assert isinstance(member.paper, str)
        assert re.fullmatch(r"[a-z0-9-]+", name)


@given(TEXTS)
def test_what_is_printed_is_read_back_or_refused_with_a_way_out(text: str) -> None:
    try:
        plan = Plan.parse(text)
    except PlanError as error:
        reason, _, nearest = str(error).partition("\nNearest legal: ")
        assert reason.endswith(".")
        for legal in nearest.removesuffix(".").split(", or "):
            Plan.parse(legal)
        return
    text = str(plan)
    assert Plan.parse(text) == plan
    assert str(Plan.parse(text)) == text
    assert not set(text) & set(" \t\n'\"$&|;<>(){}*?[]#~\\!`")  # safe in a shell


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("bsp", "bsp"),
        ("bsp/allreduce/none/fusion", "bsp"),
        ("bsp/allreduce:auto", "bsp"),
        (" bsp/allreduce:ring ", "bsp/allreduce:ring"),
        ("bsp/allreduce/none/fusion:4096KiB", "bsp/allreduce/none/fusion:4MiB"),
        ("bsp/allreduce/none/fusion:bucket_bytes=25MB", "bsp/allreduce/none/fusion:25MB"),
        ("local:H=8/allreduce/topk:ratio=0.01+ef", "local:8/allreduce/topk:0.01+ef"),
        ("bsp/allreduce/int8:1024,nearest", "bsp/allreduce/int8"),
        ("bsp/allreduce/int8:rounding=stochastic", "bsp/allreduce/int8:rounding=stochastic"),
    ],
)
def test_prints_the_shortest_text(text: str, printed: str) -> None:
    assert str(Plan.parse(text)) == printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bps", "Did you mean bsp?"),
        (
            "ring",
            "'ring' is no known sync; it is an architecture, the second part of sync/architecture/compression/",
        ),
        ("ring", "/schedule: allreduce:ring or gossip:ring."),
        ("bsp/halving-doubling", "architecture; did you mean allreduce:halving-doubling?"),
        ("bsp/torus", "did you mean allreduce:torus or gossip:torus?"),
        ("topk", "it is a compression, the third part of sync/architecture/compression/schedule: topk:0.01."),
        ("bsp/topk:0.25", "compression/schedule: topk:0.25."),
        ("bsp/allreduce/mgwfbp", "it is a schedule, the last part"),
        (
            "bsp/allreduce/none/local:4",
            "it is a sync, the first part of sync/architecture/compression/schedule: local:4.",
        ),
        ("bsp/ringreduce", "is no known architecture; known: allreduce"),
        ("bsp/allreduce/fp3", "'fp3' is no known compression; `tightwire methods` lists all"),
        ("bsp/allreduce/fp3", "Did you mean fp8"),
        ("bsp/allreduce/none/mgwfpb", "is no known schedule"),
        ("bsp/allreduce:rign", "rign is no known program; known: auto, allgather"),
        ("", "is not a plan"),
        ("bsp//none", "is not a plan"),
        ("bsp/allreduce/none/wfbp/more", "seen 5 parts"),
        ("bsp:3", "'3' that bsp does not take; it takes no arguments"),
        ("local", "Arguments of local: H: int"),
        ("local:four", "H='four' is not an int"),
        ("local:0", "at least 1"),
        ("local:4,5", "'5' that local does not take; it takes H: int"),
        ("local:K=4", "'K=4' that local does not take"),
        ("local:4,H=5", "'H=5' that local does not take"),
        ("local:", "Arguments of local"),
        ("bsp/allreduce/topk:1.5", "give one in (0, 1]"),
        ("bsp/allreduce/topk:nan", "give one in (0, 1]"),
        ("bsp/allreduce/topk:0.01+", "'' is no known compression"),
        ("bsp/allreduce/none/fusion:4mib", "write a number and one of B, KB"),
        ("bsp/allreduce/none/fusion:0", "at least 1 byte"),
        ("bsp/allreduce:ring/topk:0.01", "Nearest legal: bsp/allreduce:allgather/topk:0.01."),
        ("bsp/allreduce/none+ef", "Nearest legal: bsp."),
        ("bsp/allreduce:ring/ef", "Nearest legal: bsp/allreduce:allgather/topk:0.01+ef."),
        ("bsp/allreduce:native/int8+int8", "Nearest legal: bsp/allreduce:ring/int8."),
    ],
)
def test_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(text)
    assert said in str(caught.value)


def test_a_default_is_what_leaving_out_means() -> None:
    assert str(Plan.parse("/".join(DEFAULTS.values()))) == "bsp"


def test_having_checks_again() -> None:
    plan = Plan.parse("bsp/allreduce:ring/bf16")
    assert str(plan.having(sync=Local(4))) == "local:4/allreduce:ring/bf16"
    assert text_with(plan, compression="none") == "bsp/allreduce:ring"
    with pytest.raises(PlanError, match="no elementwise sum"):
        plan.having(compression=(TopK(0.5),))


@dataclass(frozen=True)
class Every(Member):
    """A member with an argument of every kind."""

    name: ClassVar[str] = "every"
    axis: ClassVar[Axis] = "sync"
    count: int = 1
    rate: float = 0.5
    slow: bool = False
    word: str = "a"
    size_bytes: int = 8


@given(
    st.builds(
        Every,
        COUNTS,
        st.floats(allow_nan=False),
        st.booleans(),
        st.sampled_from("abc"),
        st.integers(0, 2**50),
    )
)
def test_every_kind_of_argument_is_read_back(member: Every) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tightwire.catalogue.catalogue", lambda axis: {"every": Every})
        assert parse_member("sync", str(member)) == member
    assert "+" not in str(member)


@given(st.integers(0, 2**60))
def test_sizes_are_read_back(num_bytes: int) -> None:
    assert parse_bytes(print_bytes(num_bytes)) == num_bytes


@pytest.mark.parametrize("text", ["", "MB", "-1", "1.5B", "4 QB", "4mb", "１MB"])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_bytes(text)


def full_file() -> PlanFile:
    return PlanFile(
        plan="bsp/allreduce/topk:0.01+ef",
        routing=(Route(match="*.bias", compression="none"), Route(match="head.*", compression="bf16")),
        measured={"cluster": {"alpha_s": 1e-4, "links": [1, 2]}, "note": "über 1 µs"},
        predicted={"step_s": 0.25},
        why=("exposed: 40 ms", "bound by the wire"),
    )


def test_a_plan_file_is_read_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plan.yaml"
    full_file().write(path)
    assert PlanFile.read(path) == full_file()
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_file_that_is_not_there_says_what_to_do(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(
        FileError, match=r"no such file in .* `tightwire plan … --out .*mine\.yaml`, mend the path, or"
    ):
        PlanFile.read(path)


def test_a_plan_file_may_be_written_by_hand(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("plan: local:8  # changed on Monday\nrouting:\n- {match: '*.bias', compression: none}\n")
    plan_file = PlanFile.read(str(path))
    assert plan_file.parse() == Plan.parse("local:8")
    assert plan_file.routing == (Route(match="*.bias", compression="none"),)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"plna": "bsp"}, FileError, "plna: "),
        ({"routing": [{"match": "*", "compression": "none", "codec": 1}]}, FileError, "routing.0.codec: "),
        ({"routing": [{"match": "*"}]}, FileError, "routing.0.compression: "),
        ({"why": 3}, FileError, "why: "),
        ({"version": 2}, FileError, "version: "),
        ({"plan": 8}, FileError, "plan: "),
        ({"plan": "bsp/treereduce"}, PlanError, "known: allreduce"),
        ({"plan": "bsp/allreduce:ring", "routing": []}, None, ""),
        (
            {"plan": "bsp/allreduce:ring"} | {"routing": [{"match": "*.w", "compression": "topk:0.1"}]},
            PlanError,
            "the route of *.w: topk:0.1 cannot travel by ring",
        ),
        (
            {"routing": [{"match": "*.w", "compression": "top"}]},
            PlanError,
            "the route of *.w: 'top' is no known",
        ),
    ],
)
def test_edits_of_a_plan_file(
    tmp_path: pathlib.Path, change: dict[str, Any], error: type[Exception] | None, said: str
) -> None:
    path = tmp_path / "plan.yaml"
    full_file().write(path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    if error is None:
        PlanFile.read(path)
        return
    with pytest.raises(error) as caught:
        PlanFile.read(path)
    assert said in str(caught.value)
