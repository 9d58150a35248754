"""Front: the trials that no other beats in both cost and loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, TypeVar

from graphopt.reporting.svg import opening

__all__ = ["front_svg", "front_table", "pareto"]

T = TypeVar("T")
WIDTH, HEIGHT, EDGE = 640, 420, 60


def pareto(items: Sequence[T], cost: Callable[[T], float], loss: Callable[[T], float]) -> list[T]:
    """Those that no other is better than in one and no worse than in the other; cheapest first."""
    found: list[T] = []
    for one in sorted(items, key=lambda i: (cost(i), loss(i))):
        if not found or loss(one) < loss(found[-1]):
            found.append(one)
    return found


def front_table(rows: Sequence[dict[str, Any]]) -> str:
    """The front as a Markdown table; every row has the same keys."""
    if not rows:
        return "no candidate\n"
    keys = list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def front_svg(
    points: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float]],
    names: tuple[str, str],
    limit: float | None,
) -> str:
    """Every trial as a point of (cost, loss), the front as a line, the limit of loss dashed."""
    xs, ys = [p[0] for p in points] or [0.0], [p[1] for p in points] or [0.0]
    ys = [*ys, *([limit] if limit is not None else [])]
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1.0)
        up = (y - low_y) / ((high_y - low_y) or 1.0)
        return EDGE + across * (WIDTH - 2 * EDGE), HEIGHT - EDGE - up * (HEIGHT - 2 * EDGE)

    parts = [
        opening(WIDTH, HEIGHT),
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(names[0])}</text>',
        f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {HEIGHT / 2})">{escape(names[1])}</text>',
    ]
    for x in (low_x, high_x):
        at, _ = place(x, low_y)
        parts.append(f'<text x="{at:.0f}" y="{HEIGHT - 34}" text-anchor="middle">{x:.4g}</text>')
    for y in (low_y, high_y):
        _, at = place(low_x, y)
        parts.append(f'<text x="{EDGE - 8}" y="{at:.0f}" text-anchor="end">{y:.4g}</text>')
    if limit is not None:
        _, at = place(low_x, limit)
        parts.append(f'<path class="limit" d="M{EDGE} {at:.1f}H{WIDTH - EDGE}"/>')
    for x, y in points:
        at_x, at_y = place(x, y)
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="3" class="dot"/>')
    if front:
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in front)
        parts.append(f'<path class="line" d="M{path}"/>')
    return "\n".join([*parts, "</svg>", ""])
