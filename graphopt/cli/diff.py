"""`graphopt diff`."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli.common import emit_json, standard

#: Rows of a table; --json has all.
ROWS = 40
#: Characters of a metadata entry that are shown.
SHOWN = 60


@click.command("diff")
@click.argument("a")
@click.argument("b")
@standard
def command(a: str, b: str, as_json: bool, debug: bool) -> int:
    """Tell models A and B apart: nodes, weights, metadata, interface.

    Nodes are matched by the provenance that graphopt writes, otherwise by what they compute, by
    their weights, names and neighbours; files of any tool will do. Nothing is run.

    Exit codes: 0 equal, 1 different, 3 a file that is no model. Names inside do not count.
    """
    from graphopt.cli.progress import progress
    from graphopt.differing.difference import difference
    from graphopt.formats import load

    with progress(not as_json) as shown:
        shown("comparing", 0, 0)
        found = difference(load(a), load(b))
    if as_json:
        emit_json({"a": a, "b": b, **found.to_json()})
    else:
        _print(found)
    return 0 if found.equal else 1


def _print(found: Any) -> None:
    from graphopt.reporting.text import out, print_table, table

    console = out()
    a, b = found.match.a, found.match.b
    counts = ", ".join(f"{n} {fate}" for fate, n in found.structure.items())
    console.print(f"{len(a.nodes)} nodes -> {len(b.nodes)}: {counts or 'none'}")
    rows = _grouped(found)
    made = table("operator", "", ">nodes", "by", "what", "for example")
    for (operator, fate, by, why), names in rows[:ROWS]:
        made.add_row(operator, fate, str(len(names)), by, why, names[0])
    if len(rows) > ROWS:
        made.add_row(f"{len(rows) - ROWS} more kinds", "", "", "", "", "--json lists all")
    if made.row_count:
        print_table(console, made, keys=3)
    _print_weights(console, found.weights)
    for kind, entries in (("interface", found.interface), ("metadata", found.metadata)):
        listed = table(kind, "a", "b")
        for name, sides in entries.items():
            listed.add_row(name, *(_short(side) for side in sides))
        if listed.row_count:
            print_table(console, listed)
    console.print("the models are equal" if found.equal else "the models differ")


def _grouped(found: Any) -> list[tuple[tuple[str, str, str, str], list[str]]]:
    """Nodes that are not the same, by operator and what became of them, the most frequent first."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for flow, fates, mark in (
        (found.match.a, found.before, "-"),
        (found.match.b, found.after, "+"),
    ):
        twins = mark == "+"
        for node, name, e in zip(flow.nodes, flow.names, fates, strict=True):
            if e.fate == "same" or (twins and e.fate in ("changed", "rewired")):
                continue
            sign = "~" if e.fate in ("changed", "rewired") else mark
            key = (f"{sign} {node.op_type}", e.fate, " ".join(e.by), e.kind)
            groups.setdefault(key, []).append(name)
    order = {"~": 0, "-": 1, "+": 2}
    return sorted(groups.items(), key=lambda i: (order[i[0][0][0]], -len(i[1])))


def _print_weights(console: Any, weights: Any) -> None:
    from graphopt.reporting.text import print_table, table

    made = table("weight", "was", "is", ">relative L2", ">max abs", ">differ", "")
    for c in weights.changed[:ROWS]:
        figures = ["-" if v is None else f"{v:.3g}" for v in (c.rel_l2, c.max_abs)]
        share = "-" if c.share is None else f"{c.share:.1%}"
        made.add_row(c.name, c.before, c.after, *figures, share, c.note)
    if len(weights.changed) > ROWS:
        made.add_row(f"{len(weights.changed) - ROWS} more", "", "", "", "", "", "")
    if made.row_count:
        print_table(console, made)
    told = [f"{weights.same} weights are the same", f"{len(weights.changed)} changed"]
    told += [
        f"{len(names)} {what}" for names, what in ((weights.gone, "gone"), (weights.new, "new"))
    ]
    console.print(", ".join(told))


def _short(text: str | None) -> str:
    if text is None:
        return "-"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
