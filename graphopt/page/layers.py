"""Table of layers: what each costs before and after, how it is stored, what it loses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from graphopt.differing.fates import Explained
from graphopt.graph.provenance import why
from graphopt.page.graph import Stages
from graphopt.page.html import element, section

__all__ = ["layer_rows", "layer_section"]

FLOATS = frozenset(("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"))


def layer_rows(
    stages: Stages, errors: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, Any]:
    """Columns and rows of the table, one row a node of the first model.

    Args:
        stages: the graphs; the last is compared with the first.
        errors: per node of the first model, relative L2 of what it makes in the last one, and what
            it adds to that itself.
    """
    first = stages.drawn[0]
    pair = len(stages.drawn) > 1
    last = stages.drawn[-1]
    flow, there = first.scene.flow, last.scene.flow
    fates = last.before or [Explained("same")] * len(flow.nodes)
    weights = {
        y for y, n in enumerate(there.nodes) if n.op_type == "DequantizeLinear"
    } & there.constants()
    spoken: set[int] = set()  # a node that stands for several is counted at the first
    rows = []
    for k, (node, name, fate) in enumerate(zip(flow.nodes, flow.names, fates, strict=True)):
        known = first.facts[name]
        row: dict[str, Any] = {"0": name, "1": node.op_type, "2": known.macs or 0}
        row |= {"4": known.bytes, "6": known.ms, "8": _precision(flow, [k]), "node": k}
        if pair:
            own = [y for y in fate.others if y not in spoken] if fate.fate != "removed" else []
            spoken.update(own)
            alone = [y for y in own if y not in weights] or own  # their bytes are with the reader
            facts = [last.facts[there.names[y]] for y in alone]
            ms = [f.ms for f in facts if f.ms is not None]
            row |= {
                "3": sum(f.macs or 0 for f in facts),
                "5": sum(f.bytes for f in facts),
                "7": sum(ms) if ms else None,
                "9": _precision(there, own) or row["8"],
                "10": _cut(flow, there, k, own),
                "11": _rank(there, own),
                "14": ", ".join(fate.by) if fate.fate != "same" else "",
                "15": fate.fate,
            }
            row["12"], row["13"] = reversed((errors or {}).get(name, (None, None)))
            row["changed"] = fate.fate != "same"
        rows.append(row)
    timed = any(r["6"] is not None for r in rows)
    pairs = (("MACs", "count"), ("Holds", "bytes"), ("Time", "ms"), ("Precision", "text"))
    columns: list[dict[str, Any]] = [{"title": t, "form": "text"} for t in ("Node", "Operator")]
    for at, (title, form) in enumerate(pairs):
        was = 2 + 2 * at
        shown: dict[str, Any] = {
            "title": title,
            "form": form,
            "hidden": not (timed or form != "ms"),
        }
        hidden = {"title": title, "form": form, "hidden": True}
        columns += [hidden, shown | {"was": was}] if pair else [shown, hidden]
    sort = next((c for c in columns if c["form"] == "ms" and not c["hidden"]), None)
    (sort or next(c for c in columns if c["form"] == "count" and not c["hidden"]))["sorted"] = True
    columns += [
        {"title": title, "form": form, "hidden": not any(r.get(str(10 + k)) for r in rows)}
        for k, (title, form) in enumerate(TOLD)
    ]
    return {"columns": columns, "rows": rows}


def layer_section(*, pair: bool) -> str:
    """The table, empty: the script fills it."""
    hint = "Click a heading to sort, a row to find the node in the graph."
    if pair:
        hint += (
            " Costs of nodes that became one are with the first of them. Error is the relative L2 "
            "difference of what a node makes; alone is what it adds to that of its inputs."
        )
    options = [element("option", label, value=value) for value, label in OPTIONS]
    tools = [
        element("input", type="search", placeholder="Filter by name or operator",
                aria_label="Filter the table"),
        element("select", *options, aria_label="Which nodes", hidden=None if pair else "hidden"),
        element("span", class_="grow"),
        element("button", "Show all", type="button", class_="all"),
    ]  # fmt: skip
    table = element("table", element("thead"), element("tbody"))
    scroll = element(
        "div", table, class_="panel scroll", tabindex=0, role="region", aria_label="Layers"
    )
    inner = (element("div", *tools, class_="tools"), scroll, element("p", class_="more"))
    return section("Layers", hint, *inner, id_="layers")


#: Columns of a pair alone, the first of them the tenth.
TOLD = (
    ("Cut", "text"),
    ("Rank", "text"),
    ("Error alone", "number"),
    ("Error", "number"),
    ("By", "text"),
    ("Became", "text"),
)
OPTIONS = (("all", "All nodes"), ("changed", "Changed"), ("same", "Unchanged"))


def _precision(flow: Any, nodes: list[int]) -> str:
    """How the weights of nodes are stored, the most bytes first."""
    held: dict[str, int] = {}
    for k in nodes:
        tensors = [flow.constant(v) for v in flow.reads[k]]
        for k2 in (flow.maker(v) for v in flow.reads[k]):  # weights behind DequantizeLinear
            if k2 is not None and flow.nodes[k2].op_type == "DequantizeLinear":
                tensors += [flow.constant(v) for v in flow.reads[k2][:1]]
        for t in tensors:
            if t is not None and t.size > 1 and t.dtype.name != "INT64":
                held[t.dtype.name.lower()] = held.get(t.dtype.name.lower(), 0) + t.nbytes
    return max(held, key=lambda n: held[n]) if held else ""


def _cut(flow: Any, there: Any, k: int, own: list[int]) -> str:
    """The largest weight's shape where it lost something: 64×32 of 128×64."""
    old = _largest(flow, [k])
    new = _largest(there, own)
    if old is None or new is None or old == new or len(old) != len(new) or _rank(there, own):
        return ""
    smaller = all(a <= b for a, b in zip(new, old, strict=True))
    return f"{'×'.join(map(str, new))} of {'×'.join(map(str, old))}" if smaller else ""


def _largest(flow: Any, nodes: list[int]) -> tuple[int, ...] | None:
    held = [t for k in nodes for v in flow.reads[k] if (t := flow.constant(v)) is not None]
    return max(held, key=lambda t: t.size).shape.numpy() if held else None


def _rank(there: Any, own: list[int]) -> str:
    """The rank of factors, as the pass said."""
    found = (re.search(r"\brank (\d+)", why(there.nodes[y])) for y in own)
    return next((m[1] for m in found if m), "")
