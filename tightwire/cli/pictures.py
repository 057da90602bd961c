"""Pictures in files: .html, which any browser shows, or .png where kaleido is installed."""

from __future__ import annotations

import html
import importlib.util
import pathlib
from typing import Any

from tightwire import pages
from tightwire.cli import made
from tightwire.errors import FileError
from tightwire.files import require_writable, write_text

STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:1rem}.quiet{color:#59636e}"
    "h1{position:absolute;width:1px;height:1px;margin:0;overflow:hidden;clip-path:inset(50%)}"
)


def require_picture(path: pathlib.Path | None, option: str) -> None:
    """Refuses what is no picture's name, before anything is computed for it.

    Raises:
        FileError: an ending that is neither .html nor .png, no plotly, or no kaleido for .png.
    """
    if path is None:
        return
    if path.suffix not in (".html", ".png"):
        raise FileError(f"{option} {path}: a plot is written as .html or .png.")
    require_plotly(f"{option} {path}")
    if path.suffix == ".png" and importlib.util.find_spec("kaleido") is None:
        raise FileError(
            f"{option} {path}: .png needs kaleido and a browser; pip install kaleido, or write .html."
        )


def require_plotly(what: str) -> None:
    """Refuses what ends with a picture, before it begins, where nothing can draw one.

    Args:
        what: is to be drawn, as an error begins.

    Raises:
        FileError: plotly is not installed.
    """
    if importlib.util.find_spec("plotly") is None:
        raise FileError(
            f"{what} is drawn by plotly, which is not installed: pip install 'tightwire[report]'."
        )


def write_picture(drawing: Any, path: pathlib.Path, option: str) -> None:
    """Writes a plotly figure.

    Args:
        drawing: the figure.
        path: ends with .html or .png.
        option: that asked for it, for errors.

    Raises:
        FileError: another ending, a place that cannot be written to, or no kaleido for .png.
    """
    require_picture(path, option)
    if path.suffix == ".html":
        drawn = drawing.to_html(include_plotlyjs=True, full_html=False, config={"displayModeBar": False})
        made_by = html.escape(f"Made by {made.command()} on {made.machine()}.")
        title = drawing.layout.title.text or "Tightwire"
        heading = f"<h1>{html.escape(title)}</h1>"  # for readers of screens: the picture shows it already
        write_text(path, pages.whole(title, f"{heading}{drawn}<p class=quiet>{made_by}</p>", STYLE))
        return
    require_writable(path)
    try:
        drawing.write_image(path)
    except (ImportError, ValueError, RuntimeError):
        raise FileError(
            f"{option} {path}: pictures need kaleido and a browser; pip install kaleido, or write .html."
        ) from None
