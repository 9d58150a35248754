"""The page of two models side by side: what `compare` and `diff` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import onnx_ir as ir

from graphopt.differing.difference import Difference, difference
from graphopt.graph.provenance import sources
from graphopt.page.cards import CARDS, cards, times
from graphopt.page.document import document
from graphopt.page.graph import Stages
from graphopt.page.html import element, section, text
from graphopt.page.layers import layer_rows, layer_section
from graphopt.reporting.records import Figures

__all__ = ["by_heir", "compare_page", "diff_page"]

#: Rows of a table, letters of a cell.
ROWS, LETTERS = 200, 240


def compare_page(
    names: tuple[str, str],
    models: tuple[ir.Model, ir.Model],
    shapes: Mapping[str, tuple[int, ...]],
    figures: tuple[Figures, Figures],
    told: Mapping[str, Any],
) -> bytes:
    """The page of a comparison; `told` is what `graphopt compare --json` prints."""
    timing = told["timing"]
    latency = ""
    if timing:
        low, high = timing["ci"]
        noisy = timing["verdict"] == "noisy"
        latency = "no verdict" if noisy else f"{times(timing['ratio'])} ({low:.2f}–{high:.2f})"
    rows = [
        (n, *(f"{e[k]:.3g}" for k in ("rel_l2", "max_abs", "sqnr_db", "cosine")),
         "–" if e["top1"] is None else f"{e['top1']:.4f}")
        for n, e in told["outputs"].items()
    ]  # fmt: skip
    heads = ("Output", "Relative L2", "Max abs", "SQNR dB", "Cosine", "Top-1")
    lead = told["broken"] or ("outputs are equal" if told["equal"] else "outputs differ")
    if told["synthetic_inputs"]:
        lead += "; inputs were drawn at random"
    lead = "; ".join([lead, *told["missed"]])
    errors = {e["node"]: (e["rel_l2"], e["added"]) for e in told["layers"]}
    short = (PurePath(names[0]).name, PurePath(names[1]).name)
    if short[0] == short[1]:
        short = names
    return _pair_page(
        " and ".join(short), short, models, shapes, figures,
        lead=lead, latency=latency, errors=errors, above=[_table("Outputs", heads, rows)],
    )  # fmt: skip


def diff_page(
    names: tuple[str, str],
    models: tuple[ir.Model, ir.Model],
    shapes: Mapping[str, tuple[int, ...]],
    figures: tuple[Figures, Figures],
    found: Difference,
) -> bytes:
    """The page of a diff: both graphs, what differs in weights, metadata and interface."""
    counts = ", ".join(f"{n} {fate}" for fate, n in found.structure.items())
    weights = found.weights
    lead = f"nodes: {counts}; weights: {weights.same} the same, {len(weights.changed)} changed"
    lead += f", {len(weights.gone)} gone, {len(weights.new)} new"
    changed = []
    for c in weights.changed:
        figures_of = ("–" if v is None else f"{v:.3g}" for v in (c.rel_l2, c.max_abs))
        changed.append((c.name, c.before, c.after, *figures_of, c.note))
    sections = [
        _table(
            "Weights that changed", ("Weight", "Was", "Is", "Relative L2", "Max abs", ""), changed
        ),
        *(
            _table(
                title,
                ("Name", "Was", "Is"),
                [(k, a or "–", b or "–") for k, (a, b) in each.items()],
            )
            for title, each in (("Interface", found.interface), ("Metadata", found.metadata))
        ),
    ]
    title = " and ".join(names)
    return _pair_page(title, names, models, shapes, figures, found=found, lead=lead, below=sections)


def _pair_page(
    title: str,
    names: tuple[str, str],
    models: tuple[ir.Model, ir.Model],
    shapes: Mapping[str, tuple[int, ...]],
    figures: tuple[Figures, Figures],
    *,
    found: Difference | None = None,
    lead: str = "",
    latency: str = "",
    errors: Mapping[str, tuple[float, float]] | None = None,
    above: Sequence[str] = (),
    below: Sequence[str] = (),
) -> bytes:
    """The page of two models side by side, with sections above and below the graphs."""
    found = found or difference(*models)
    stages = Stages(names[0], models[0], shapes)
    stages.add(names[1], models[1], found=found, errors=by_heir(models[1], errors or {}))
    told = [element("p", text(lead), class_="lead")] if lead else []
    shown = cards(CARDS, figures[0], figures[1], latency)
    body = [
        element("header", element("h1", text(title)), *told, shown),
        element("main", *above, stages.html(), *below, layer_section(pair=True)),
    ]
    return document(title, "\n".join(body), stages.data() | {"layers": layer_rows(stages, errors)})


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = element("tr", *(element("th", text(h), scope="col") for h in heads))
    lines = [
        element("tr", element("th", text(first), scope="row", class_="mono"),
                *(element("td", text(c if len(c) <= LETTERS else f"{c[:LETTERS]}…")) for c in rest))
        for first, *rest in rows[:ROWS]
    ]  # fmt: skip
    hint = "" if len(rows) <= ROWS else f"The first {ROWS} of {len(rows)}."
    table = element("table", element("thead", head), element("tbody", *lines))
    scroll = element(
        "div", table, class_="panel scroll", tabindex=0, role="region", aria_label=title
    )
    return section(title, hint, scroll)


def by_heir(model: ir.Model, errors: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Errors by the nodes of the second model: the largest of what each came from."""
    found: dict[str, float] = {}
    for node in model.graph.all_nodes() if errors else ():
        known = [errors[n][0] for n in sources(node) if n in errors]
        if known and node.name:
            found[node.name] = max(known)
    return found
