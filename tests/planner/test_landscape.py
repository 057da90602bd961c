"""The map: what it says at its corners, and that it can be read."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree

import pytest

from tightwire.plan import Plan
from tightwire.planner import Allowance, landscape
from tightwire.planner.candidates import ALLOWANCES, is_allowed
from tightwire.planner.landscape import IDEAS, MapCell, survey
from tightwire.planner.landscape_picture import picture


def look(workers: int, gigabits: float, compute_s: float) -> list[MapCell]:
    return list(survey(workers=(workers,), compute_s=(compute_s,), gigabits=(gigabits,)))


@pytest.fixture(scope="module")
def corner() -> dict[Allowance, MapCell]:
    """Little compute, a slow line."""
    return {cell.allow: cell for cell in look(4, 0.1, 0.01)}


def test_where_the_wire_is_all_less_is_sent_if_allowed(corner: dict[Allowance, MapCell]) -> None:
    assert corner["lossless"].speedup < 1.1
    assert corner["lossy"].letter in "QPS"
    assert corner["lossy"].speedup > 10
    assert corner["stale"].speedup >= corner["lossy"].speedup / 1.1


def test_where_compute_is_all_nothing_is_changed() -> None:
    assert [cell.letter for cell in look(4, 300.0, 3.0)] == ["A"] * 3


def test_plans_are_legal_within_the_allowance_and_letters_differ(corner: dict[Allowance, MapCell]) -> None:
    assert len({idea.letter for idea in IDEAS}) == len(IDEAS)
    assert {str(Plan.parse(text)) for idea in IDEAS for text in idea.plans}
    assert all(is_allowed(Plan.parse(cell.plan), allow) for allow, cell in corner.items())


def test_every_cell_is_on_the_text_and_on_the_page(
    corner: dict[Allowance, MapCell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "WORKERS", (4,))
    monkeypatch.setattr(landscape, "GIGABITS", (0.1,))
    monkeypatch.setattr(landscape, "COMPUTE_S", (0.01,))
    cells = list(corner.values())
    text, page = "\n".join(landscape.lines(cells)), landscape.page(cells, "tightwire study map")
    for cell in cells:
        assert f"{cell.letter} {cell.speedup:>6.1f} ×" in text
        assert cell.plan in page
    assert sum(line.startswith("## ") for line in text.splitlines()) == len(ALLOWANCES) + 2
    assert "http" not in page


def test_the_picture_holds_every_cell_of_its_workers() -> None:
    cells = [
        MapCell(
            allow=allow, workers=16, gigabits=gigabits, compute_s=compute_s, letter="B", plan="bsp & more",
            speedup=2.0, fastest="B",
        )
        for allow in ALLOWANCES
        for gigabits in landscape.GIGABITS
        for compute_s in landscape.COMPUTE_S
    ]  # fmt: skip
    cells += [dataclasses.replace(cell, workers=n) for cell in cells for n in landscape.WORKERS if n != 16]
    drawn = picture(cells, 16, "tightwire study map")
    assert drawn.count("2.0×") == len(ALLOWANCES) * len(landscape.GIGABITS) * len(landscape.COMPUTE_S)
    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
    # No line is cut at its end, also with a longer machine's name: letters of 12 px are about 6.5 px wide.
    made_by = (
        "`tightwire study map`, a machine of a dozen words, none of which is short, and all of which are told"
    )
    named = xml.etree.ElementTree.fromstring(picture(cells, 16, made_by))
    width = float(named.attrib["viewBox"].split()[2])
    texts = [text for text in named.iter() if text.tag.endswith("text") and "font-size" not in text.attrib]
    assert max(len(text.text or "") for text in texts) * 6.5 < width
