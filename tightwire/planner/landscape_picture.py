"""The map as a picture that a page of text can show."""

from __future__ import annotations

import html
from collections.abc import Sequence

from tightwire.planner.landscape import COMPUTE_S, GIGABITS, IDEAS, MapCell, grids


def picture(cells: Sequence[MapCell], workers: int, command: str) -> str:
    """Returns the maps of one number of workers, a panel per allowance, as a picture (SVG) for a page of text."""
    side, left, top, gap = 44, 96, 66, 34
    panels = [(allow, rows) for allow, n, rows in grids(cells) if n == workers]
    width = left + len(panels) * (len(GIGABITS) * side + gap)
    height = top + len(COMPUTE_S) * side + 150
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" text-anchor="middle" role="img"><title>Which method is best where, {workers} workers'
        f'</title><rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="{width / 2}" y="20" font-size="16" font-weight="bold">Which method is best where, as predicted '
        f"for {workers} workers, and how many times as fast as plain all-reduce it reaches a loss</text>"
    ]
    colours = {idea.letter: idea.colour for idea in IDEAS}
    for number, (allow, rows) in enumerate(panels):
        x0 = left + number * (len(GIGABITS) * side + gap)
        parts.append(
            f'<text x="{x0 + len(GIGABITS) * side / 2}" y="44" font-weight="bold">{allow} plans</text>'
        )
        for column, gigabits in enumerate(GIGABITS):
            parts.append(f'<text x="{x0 + (column + 0.5) * side}" y="{top - 6}">{gigabits:g}</text>')
        for line, (compute_s, row) in enumerate(zip(COMPUTE_S, rows, strict=True)):
            y = top + line * side
            if number == 0:
                label = f"{compute_s * 1e3:,g} ms"
                parts.append(f'<text x="{left - 8}" y="{y + 27}" text-anchor="end">{label}</text>')
            for column, cell in enumerate(row):
                x = x0 + column * side
                times = f"{cell.speedup:.{0 if cell.speedup >= 10 else 1}f}×"
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{side - 1}" height="{side - 1}" fill="{colours[cell.letter]}">'
                    f"<title>{html.escape(cell.plan)}</title></rect>"
                    f'<text x="{x + side / 2}" y="{y + 19}" font-weight="bold">{cell.letter}</text>'
                    f'<text x="{x + side / 2}" y="{y + 35}" font-size="11">{times}</text>'
                )
    y = top + len(COMPUTE_S) * side + 24
    parts.append(
        f'<text x="{width / 2}" y="{y}">across: rate of each worker\'s link, Gb/s; down: compute of a step per 100 MB '
        f'of gradients</text><text x="{width / 2}" y="{y + 18}">made by `{command}`</text>'
    )
    across = 4
    for number, idea in enumerate(IDEAS):
        mark_x = 24 + (number % across) * (width - 48) // across
        row_y = y + 38 + number // across * 24
        parts.append(
            f'<rect x="{mark_x}" y="{row_y}" width="18" height="18" fill="{idea.colour}"/>'
            f'<text x="{mark_x + 9}" y="{row_y + 13}" font-weight="bold">{idea.letter}</text>'
            f'<text x="{mark_x + 26}" y="{row_y + 13}" text-anchor="start">{idea.title}</text>'
        )
    return "".join(parts) + "</svg>\n"
