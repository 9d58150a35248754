"""`graphopt show`."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import click

from graphopt.cli.common import emit_json, standard
from graphopt.errors import InputError


@click.command("show")
@click.argument("model")
@click.option("--nodes", is_flag=True, help="List every node that was touched.")
@standard
def command(model: str, nodes: bool, as_json: bool, debug: bool) -> None:
    """Show how an optimized MODEL was made: its recipe, and where its nodes came from."""
    from graphopt.formats import load
    from graphopt.graph.provenance import BY, KEPT, RECIPE, TRIMMED, made_by, sources
    from graphopt.pipeline.recipe import Recipe

    loaded = load(model)
    text = loaded.metadata_props.get(RECIPE)
    if text is None:
        raise InputError(f"{model} holds no recipe: graphopt did not write it, or --strip was used")
    recipe = Recipe.from_text(text)
    touched = [n for n in loaded.graph.all_nodes() if BY in n.metadata_props]
    provenance: list[dict[str, Any]] = [
        {"node": n.name, "operator": n.op_type, "from": sources(n), "by": made_by(n)}
        for n in touched
    ]
    kept = json.loads(loaded.metadata_props.get(KEPT, "{}"))
    if as_json:
        emit_json({"recipe": json.loads(recipe.to_text()), "kept": kept, "nodes": provenance})
        return
    from graphopt.reporting.text import lines, out, table

    console = out()
    facts = table("", "")
    facts.add_row("made by", f"graphopt {recipe.graphopt}")
    facts.add_row("target", recipe.target)
    facts.add_row("seed", str(recipe.seed))
    facts.add_row("source", f"sha256 {recipe.source[:16]}...")
    facts.add_row("samples", f"sha256 {recipe.samples[:16]}..." if recipe.samples else "none")
    facts.add_row("versions", ", ".join(f"{k} {v}" for k, v in recipe.versions.items()))
    if not recipe.validated:
        facts.add_row("unvalidated", "made with neither samples nor a budget")
    console.print(facts)
    steps = table("step", "", "decisions")
    for step in recipe.steps:
        notes = [f"denied {rule} at {node}" for rule, node in step.denied]
        notes += [f"{k}: {json.dumps(v)}" for k, v in step.facts.items()]
        steps.add_row(step.spec, "kept" if step.kept else "undone", lines(notes))
    console.print(steps)
    by = Counter(p for n in touched for p in made_by(n))
    total = sum(1 for _ in loaded.graph.all_nodes())
    if TRIMMED in loaded.metadata_props:
        console.print("provenance of single nodes was left out: it would be over 5 % of the file")
        return
    console.print(f"{len(touched)} of {total} nodes touched: " + _counted(by))
    if kept:
        console.print(f"{len(kept)} tensors were cut; --json lists the kept indices")
    if nodes:
        rows = table("node", "operator", "from", "by")
        for item in provenance:
            rows.add_row(
                item["node"], item["operator"], ", ".join(item["from"]), ", ".join(item["by"])
            )
        console.print(rows)


def _counted(by: Counter[str]) -> str:
    return ", ".join(f"{n} by {name}" for name, n in by.most_common()) or "none"
