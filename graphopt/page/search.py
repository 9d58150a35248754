"""The search on the page: its front, and what was chosen layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.page.charts import front
from graphopt.page.html import element, section, text

__all__ = ["search_section"]


def search_section(told: Mapping[str, Any]) -> str:
    """Every trial by cost and loss, and the choice.

    Args:
        told: `SearchReport.to_json()`.
    """
    figure = {"latency": "latency_ms"}.get(told["minimize"], told["minimize"])

    def at(row: Mapping[str, Any]) -> tuple[float, float]:
        return float(row[figure] or 0.0), float(row["loss"])

    done = [at(r) for r in told["trials"] if r["loss"] is not None and r[figure] is not None]
    line = [at(r) for r in told["front"] if r["loss"] is not None and r[figure] is not None]
    best = told["best"]
    chosen = at(best) if best.get("loss") is not None and best.get(figure) is not None else None
    chart = front(done, line, chosen, (figure, told["loss"]), told["limit"])
    rows = [
        element(
            "tr",
            element("th", text(one["layer"]), scope="row", class_="mono"),
            element("td", text(one["option"])),
            element("td", text(f"{one['saved']:.1%}"), class_="num"),
            element("td", text(f"{one['loss']:.3g}"), class_="num"),
        )
        for one in told["layers"]
    ]
    heads = ("Layer", "Option", f"{told['minimize']} saved", f"{told['loss']}, predicted")
    kinds = ("", "", "num", "num")
    head = element(
        "tr",
        *(element("th", text(h), scope="col", class_=k) for h, k in zip(heads, kinds, strict=True)),
    )
    table = element("table", element("thead", head), element("tbody", *rows))
    scroll = element(
        "div", table, class_="panel scroll", tabindex=0, role="region", aria_label="Choice by layer"
    )
    hint = f"{len(done)} candidates evaluated, {len(line)} on the front; {told['next']}"
    return section("Search", hint, element("div", chart, class_="charts"), scroll if rows else "")
