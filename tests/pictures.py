"""What holds for every picture: a title, axes with titles, and nothing beyond the data that stretches a range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

# No picture of ours spans more: an annotation at x on a logarithmic axis would stretch it to 10 to the power of x.
MOST_DECADES = 12


def drawn(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], object]) -> list[dict[str, Any]]:
    """Returns the figures, as plain values, that `draw` turns into HTML."""
    import plotly.basedatatypes as plotly

    found: list[dict[str, Any]] = []
    to_html = plotly.BaseFigure.to_html

    def recorded(figure: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(figure.to_dict())
        return to_html(figure, *args, **(kwargs | {"include_plotlyjs": False}))

    monkeypatch.setattr(plotly.BaseFigure, "to_html", recorded)
    monkeypatch.setattr(
        plotly.BaseFigure, "write_html", lambda figure, path, **kwargs: found.append(figure.to_dict())
    )
    draw()
    return found


def check_picture(figure: dict[str, Any], *, is_titled: bool = True) -> None:
    """Makes sure that a figure can be read: `is_titled`, or the page that holds it has a heading for it."""
    layout = figure["layout"]
    if is_titled:
        assert layout["title"]["text"], layout
    assert figure["data"], "nothing is drawn"
    axes: dict[str, list[dict[str, Any]]] = {"x": [], "y": []}
    for name, axis in layout.items():
        if name.startswith(("xaxis", "yaxis")) and isinstance(axis, dict):
            axes[name[0]].append(axis)
    for letter, found in axes.items():
        shown = [axis for axis in found if axis.get("title", {}).get("text")]
        assert shown, f"no {letter} axis has a title"
        shared = [axis for axis in found if axis.get("matches")]
        assert len(shown) + len(shared) >= len(found), f"an {letter} axis has no title"
    for trace in figure["data"]:
        assert trace.get("name") or len(figure["data"]) == 1, trace
    _check_ranges(figure)


def _check_ranges(figure: dict[str, Any]) -> None:
    layout = figure["layout"]
    for letter in "xy":
        values = [v for t in figure["data"] for v in (t.get(letter) or ()) if isinstance(v, int | float)]
        assert all(math.isfinite(v) for v in values)
        if layout.get(f"{letter}axis", {}).get("type") != "log" or not values:
            continue
        assert min(values) > 0
        low, high = math.log10(min(values)), math.log10(max(values))
        assert high - low < MOST_DECADES
        for note in layout.get("annotations", ()):
            if note.get(f"{letter}ref", letter) == letter and note.get(letter) is not None:
                assert low - 1 <= note[letter] <= high + 1, f"an annotation at 10^{note[letter]}"
