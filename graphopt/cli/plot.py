"""Plots as SVG, written by hand: bars need no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from graphopt.cli.common import told_apart
from graphopt.cli.destinations import PLOT_MARK
from graphopt.measuring.benchmark import Row
from graphopt.reporting.svg import CATEGORIES, opening

__all__ = ["latency_svg"]

WIDTH, LABEL, BAR, GAP, HEAD = 760, 300, 18, 8, 40


def latency_svg(rows: Sequence[Row]) -> str:
    """One bar per row up to the median, a whisker to the 90th percentile, colors by target."""
    drawn = [r for r in rows if r.median_ms is not None]
    scale = (WIDTH - LABEL - 110) / max((r.p90_ms or 0.0 for r in drawn), default=1.0)
    names = told_apart([r.model for r in drawn])
    targets = list(dict.fromkeys(r.target for r in drawn))
    height = HEAD + len(drawn) * (BAR + GAP) + GAP
    parts = [
        PLOT_MARK.decode(),
        opening(WIDTH, height),
        f'<text class="strong" x="{LABEL}" y="22" font-weight="600">latency, median and 90th '
        "percentile</text>",
    ]
    for k, row in enumerate(drawn):
        assert row.median_ms is not None
        assert row.p90_ms is not None
        top = HEAD + k * (BAR + GAP)
        middle, text = top + BAR / 2, top + BAR - 5
        end, far = LABEL + row.median_ms * scale, LABEL + row.p90_ms * scale
        kind = targets.index(row.target) % CATEGORIES
        label = escape(_label(row, names[row.model]))
        parts += [
            f'<text x="{LABEL - 8}" y="{text}" text-anchor="end">{label}</text>',
            f'<rect class="c{kind}" x="{LABEL}" y="{top}" width="{end - LABEL:.1f}" '
            f'height="{BAR}" rx="2.5"/>',
            f'<path class="whisker" d="M{end:.1f} {middle}H{far:.1f}m0 -4v8"/>',
            f'<text x="{far + 6:.1f}" y="{text}">{row.median_ms:.3g} ms</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _label(row: Row, name: str) -> str:
    batch = "" if row.batch is None else f", batch {row.batch}"
    return f"{name.removesuffix('.onnx')}, {row.target}, {row.threads} threads{batch}"
