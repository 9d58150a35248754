"""Charts as SVG: a waterfall by pass, a histogram with its range, the front of a search.

Colours are classes of the page's style sheet, so that they follow its scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from graphopt.page.html import element, text

__all__ = ["front", "histogram", "waterfall"]

WIDE = 520
#: A waterfall's rows, and where its names end and its numbers begin.
ROW, NAMES, NUMBERS = 26, 128, 92


def waterfall(
    title: str,
    rows: Sequence[tuple[str, float | None, tuple[float, float] | None]],
    form: Callable[..., str],
) -> str:
    """Levels one below the other: the first whole, each next what it took away or added.

    Args:
        title: what is shown.
        rows: name, level (None: not known, left as it was), and the interval of the level.
        form: writes a level.
    """
    levels = [level for _, level, _ in rows if level is not None]
    if len(levels) < 2 or not max(levels):
        return ""
    scale = (WIDE - NAMES - NUMBERS) / max(levels)
    parts = []
    last: float | None = None
    for k, (name, level, interval) in enumerate(rows):
        top = k * ROW + 4
        middle = top + 13
        parts.append(_text(NAMES - 10, middle, _short(name), "end", "strong"))
        if level is None:
            parts.append(_text(NAMES + 4, middle, "not timed", "start"))
            continue
        whole = last is None or k == len(rows) - 1
        low, high = (0.0, level) if whole or last is None else sorted((last, level))
        x, width = NAMES + low * scale, max((high - low) * scale, 1.5)
        kind = (
            "whole"
            if whole
            else "bar"
            if last == level
            else "down"
            if level < (last or 0)
            else "up"
        )
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="18" rx="2.5"/>'
        )
        end = NAMES + max(high, level) * scale
        if interval is not None:
            a, b = (NAMES + v * scale for v in interval)
            ends = f"m0 -4v8M{a:.1f} {middle - 4}v8"
            parts.append(f'<path class="whisker" d="M{a:.1f} {middle}H{b:.1f}{ends}"/>')
            end = max(end, b)
        parts.append(_text(end + 8, middle, form(level), "start", "strong" if whole else ""))
        if last is not None and not whole:
            at = NAMES + last * scale
            parts.append(f'<path class="link" d="M{at:.1f} {top - 8}v8"/>')
        last = level
    told = "; ".join(f"{name} {form(level)}" for name, level, _ in rows if level is not None)
    return _figure(title, "", "".join(parts), len(rows) * ROW + 2, f"{title}: {told}")


def histogram(
    name: str, edges: Sequence[float], counts: Sequence[int], low: float, high: float
) -> str:
    """Counts of a value, its chosen range shaded, what is clipped in red; counts by square root."""
    left, right = min(edges[0], low), max(edges[-1], high)
    span = (right - left) or 1.0
    tall, most = 84, math.sqrt(max(counts)) or 1.0
    bars: dict[str, list[str]] = {"inside": [], "clipped": []}
    clipped, total = 0, max(sum(counts), 1)

    def at(value: float) -> float:
        return (value - left) / span * WIDE

    for a, b, n in zip(edges, edges[1:], counts, strict=False):
        outside = (a + b) / 2 < low or (a + b) / 2 > high
        clipped += n if outside else 0
        if n:
            h = max(math.sqrt(n) / most * tall, 1.0)
            kind = "clipped" if outside else "inside"
            width = max(at(b) - at(a) - 0.6, 0.6)
            bars[kind].append(f"M{at(a):.1f} {tall}v-{h:.1f}h{width:.1f}v{h:.1f}")
    shade = _bar("range", at(low), 0, max(at(high) - at(low), 1), tall)
    axis = f'<path class="rule" d="M0 {tall}H{WIDE}"/>'
    ends = _text(at(low), tall + 14, f"{low:.3g}", "start") + _text(
        at(high), tall + 14, f"{high:.3g}", "end"
    )
    told = f"{clipped / total:.2%} clipped" if clipped else "nothing clipped"
    label = f"{name}: range {low:.3g} to {high:.3g}, {told}"
    drawn = "".join(f'<path class="{k}" d="{"".join(d)}"/>' for k, d in bars.items() if d)
    return _figure(name, told, shade + drawn + axis + ends, tall + 22, label)


def front(
    points: Sequence[tuple[float, float]],
    best: Sequence[tuple[float, float]],
    chosen: tuple[float, float] | None,
    names: tuple[str, str],
    limit: float | None,
) -> str:
    """Every trial as a point of (cost, loss), the front as a line, the choice, the limit dashed."""
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    ys += [limit] if limit is not None else []
    low_x, low_y = min(xs), min(ys)
    wide, tall, edge = WIDE - 70, 220, 56
    span_x, span_y = (max(xs) - low_x) or 1.0, (max(ys) - low_y) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return edge + (x - low_x) / span_x * wide, 8 + tall - (y - low_y) / span_y * tall

    parts = [f'<path class="rule" d="M{edge} 8V{tall + 8}H{edge + wide}"/>']
    if limit is not None:
        _, y = at(low_x, limit)
        parts.append(f'<path class="limit" d="M{edge} {y:.1f}H{edge + wide}"/>')
        parts.append(_text(edge + wide, y - 9, "limit", "end"))
    parts += [
        f'<circle class="dot" cx="{at(*p)[0]:.1f}" cy="{at(*p)[1]:.1f}" r="3"/>' for p in points
    ]
    if best:
        path = "L".join("{:.1f} {:.1f}".format(*at(*p)) for p in best)
        parts.append(f'<path class="front" d="M{path}"/>')
    if chosen is not None:
        x, y = at(*chosen)
        parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>')
    for x in (low_x, low_x + span_x):
        parts.append(_text(at(x, low_y)[0], tall + 24, f"{x:.4g}", "middle"))
    for y in (low_y, low_y + span_y):
        parts.append(_text(edge - 8, at(low_x, y)[1], f"{y:.3g}", "end"))
    parts.append(_text(edge + wide / 2, tall + 24, names[0], "middle", "strong"))
    label = f"{len(points)} candidates by {names[0]} and {names[1]}, {len(best)} on the front"
    return _figure(f"{names[1]} over {names[0]}", "", "".join(parts), tall + 34, label)


def _figure(title: str, aside: str, inner: str, height: float, label: str) -> str:
    caption = element("figcaption", element("b", text(title)), element("span", text(aside)))
    box = f'viewBox="0 0 {WIDE} {height:.0f}"'
    svg = f'<svg {box} role="img" aria-label="{text(label)}">{inner}</svg>'
    return element("figure", caption, svg, class_="panel")


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place}/>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}"'
    told = f' class="{kind}"' if kind else ""
    return f"<text {place}{told}>{text(words)}</text>"


def _short(name: str) -> str:
    bare = name.partition("(")[0].rpartition("/")[2]
    return bare if len(bare) <= 18 else f"{bare[:17]}…"
