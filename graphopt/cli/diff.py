"""`graphopt diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import emit_json, model_path, standard

#: Rows of a table; --json has all.
ROWS = 40
#: Characters of a metadata entry that are shown.
SHOWN = 60


@click.command("diff")
@click.argument("a", type=model_path)
@click.argument("b", type=model_path)
@click.option("--html", metavar="FILE", help="Write a page with both graphs side by side.")
@standard
def command(a: str, b: str, html: str | None, as_json: bool, debug: bool) -> int:
    """Tell models A and B apart: nodes, weights, metadata, interface.

    Nodes are matched by the provenance that graphopt writes, otherwise by what they compute, by
    their weights, names and neighbours; files of any tool will do. Nothing is run.

    Exit codes: 0 equal, 1 different, 3 a file that is no model. Names inside do not count.
    """
    from graphopt.cli.destinations import Destinations, is_page
    from graphopt.cli.progress import progress
    from graphopt.differing.difference import difference
    from graphopt.formats import load
    from graphopt.pipeline.prepare import named

    files = Destinations([a, b])
    if html is not None:
        files.add(html, "--html", is_page)
    with progress(not as_json) as shown:
        shown("comparing", 0, 0)
        models = named(load(a)), named(load(b))
        found = difference(*models)
        if html is not None:
            shown("drawing the page", 0, 0)
            _write_page(html, (a, b), models, found)
    if as_json:
        emit_json({"a": a, "b": b, **found.to_json()})
    else:
        _print(found)
    return 0 if found.equal else 1


def _write_page(path: str, names: tuple[str, str], models: Any, found: Any) -> None:
    from graphopt.analyses.binding import bind_shapes
    from graphopt.cli.common import told_apart
    from graphopt.page.pair import diff_page
    from graphopt.pipeline.state import State
    from graphopt.replacing import replace_files

    shapes, _ = bind_shapes(models[0], {})
    figures = [State(m, shapes, Path(n)).figures() for m, n in zip(models, names, strict=True)]
    apart = told_apart(names)
    short = (apart[names[0]], apart[names[1]])
    page = diff_page(short, models, shapes, (figures[0], figures[1]), found)
    replace_files([(Path(path), [page])])


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
