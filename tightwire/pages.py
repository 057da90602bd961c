"""Pages that stand alone: one HTML file that needs nothing else, to be read and forwarded."""

from __future__ import annotations

import html
import re

# Words of a table's head stay whole; what is wider than a narrow screen scrolls, also from the keyboard.
STYLE = (
    "th{overflow-wrap:normal;word-break:normal}"
    "main div:has(>.plotly-graph-div){overflow-x:auto}.plotly-graph-div{min-width:42rem}"
)
SCRIPT = (
    'document.querySelectorAll("main div").forEach('
    '(box)=>{if(getComputedStyle(box).overflowX==="auto")box.tabIndex=0})'
)


# A word as long as this may not fit on a narrow screen.
LONG_WORD = 20


def text(plain: str) -> str:
    """Returns plain text as HTML, in which plans, long words without spaces, may be broken at their joints.

    >>> text("local:8/allreduce/topk:0.01+ef < bsp")
    'local:8/<wbr>allreduce/<wbr>topk:0.01+ef &lt; bsp'
    """
    joints = re.compile(r"(?<=[/,+])(?=[^\s\d])(?!ef\b)")
    words = (joints.sub("<wbr>", w) if len(w) >= LONG_WORD else w for w in html.escape(plain).split(" "))
    return " ".join(words)


def whole(title: str, body: str, style: str = "") -> str:
    """Returns a page, in English, with a title and one main part, as readers of screens need them.

    >>> "<title>A &amp; B</title>" in whole("A & B", "<h1>A and B</h1>")
    True

    Args:
        title: of the window; plain text.
        body: HTML.
        style: CSS.
    """
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}{STYLE}</style>"
        f"<main>{body}</main><script>{SCRIPT}</script></html>\n"
    )
