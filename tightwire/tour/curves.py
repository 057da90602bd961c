"""The tour's curves as a picture that a page of text can show."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from tightwire.tour.report import COLOURS, dashes_of, label
from tightwire.tour.tour import DDP, PlanResult, TourResult

WIDTH, HEIGHT = 860, 430
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 64, 56
LEGEND_Y, LINE = 84, 22


def picture(result: TourResult, made: str) -> str:
    """Returns held-out loss against seconds of training, a curve per plan, as a picture (SVG) for a page of text.

    Args:
        result: of a tour.
        made: command and machine, told below.
    """
    curves = result.plans
    x_most = max(seconds for plan in curves for seconds, _, _ in plan.curve)
    losses = [loss for plan in curves for _, _, loss in plan.curve if math.isfinite(loss)]
    low, high = min(losses), max(losses)
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def x_of(seconds: float) -> float:
        return LEFT + inner_w * seconds / x_most

    def y_of(loss: float) -> float:
        return TOP + inner_h * (high - loss) / (high - low or 1.0)

    rate = f"{result.options.rate_bytes_per_s * 8 / 1e6:,.0f} Mb/s"
    title = f"Held-out loss over time: {result.options.workers} workers, links of {rate}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13" role="img"><title>{title}</title><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<text x="{WIDTH / 2}" y="26" font-size="16" font-weight="bold" text-anchor="middle">{title}</text>'
    ]
    for seconds in ticks(0, x_most):
        parts.append(
            f'<line x1="{x_of(seconds):.1f}" y1="{TOP}" x2="{x_of(seconds):.1f}" y2="{bottom}" stroke="#eceff2"/>'
            f'<text x="{x_of(seconds):.1f}" y="{bottom + 17}" text-anchor="middle">{seconds:g}</text>'
        )
    for loss in ticks(low, high):
        parts.append(
            f'<line x1="{LEFT}" y1="{y_of(loss):.1f}" x2="{right}" y2="{y_of(loss):.1f}" stroke="#eceff2"/>'
            f'<text x="{LEFT - 8}" y="{y_of(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>'
        )
    if result.stock is not None:
        y = y_of(result.stock.heldout_loss)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#59636e" stroke-dasharray="2 4"/>'
            f'<text x="{LEFT + 4}" y="{y - 5:.1f}" font-size="11" fill="#59636e">where stock DDP ends</text>'
        )
    for number, (plan, dashes) in enumerate(zip(curves, dashes_of(curves), strict=True)):
        points = " ".join(
            f"{x_of(s):.1f},{y_of(loss):.1f}" for s, _, loss in plan.curve if math.isfinite(loss)
        )
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        style = f'stroke="{COLOURS[plan.role]}" stroke-width="2.5"{dashed}'
        y = LEGEND_Y + number * LINE
        parts.append(
            f'<polyline points="{points}" fill="none" {style}/>'
            f'<line x1="{WIDTH - 455}" y1="{y}" x2="{WIDTH - 421}" y2="{y}" {style}/>'
            f'<text x="{WIDTH - 413}" y="{y + 4}">{html.escape(_told(plan, result))}</text>'
        )
    parts.append(
        f'<text x="{LEFT + inner_w / 2}" y="{HEIGHT - 20}" text-anchor="middle">seconds of training</text>'
        f'<text x="16" y="{TOP + inner_h / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {TOP + inner_h / 2})">nats per byte</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 5}" font-size="9.5" fill="#59636e" text-anchor="middle">'
        f"{html.escape(made)}</text></svg>\n"
    )
    return "".join(parts)


def ticks(low: float, high: float) -> Sequence[float]:
    """Returns four to ten round numbers within a range.

    >>> ticks(0, 45)
    [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    >>> ticks(2.2, 5.6)
    [2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5]
    """
    rough = (high - low or 1.0) / 8
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.75)
    return [
        round(n * step, 9) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _told(plan: PlanResult, result: TourResult) -> str:
    """Returns a plan's name without its schedule's settings, and when it had what stock DDP ends with."""
    reached_s = result.to_ddp_loss_s(plan)
    answers, _, schedule = label(plan).rpartition("/")
    name = f"{answers}/{schedule.partition(':')[0]}" if answers else schedule
    return name + ("" if plan.plan == DDP or reached_s is None else f": there in {reached_s:.0f} s")
