"""`graphopt show`."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import click

from graphopt.cli.common import emit_json, model_path, standard
from graphopt.errors import InputError, UsageError


@click.command("show")
@click.argument("model", type=model_path)
@click.option("--nodes", is_flag=True, help="List every node that was touched.")
@click.option("--verify", is_flag=True, help="Check its certificate again, without the passes.")
@click.option("--source", metavar="MODEL", help="What it was made of, for --verify.")
@standard
def command(
    model: str, nodes: bool, verify: bool, source: str | None, as_json: bool, debug: bool
) -> int:
    """Show how an optimized MODEL was made: its recipe, and where its nodes came from."""
    from graphopt.formats import load
    from graphopt.graph.provenance import BY, KEPT, RECIPE, TRIMMED, made_by, sources
    from graphopt.pipeline.recipe import Recipe

    if verify or source:
        if not (verify and source):
            raise UsageError("--verify needs the source beside it: --verify --source MODEL")
        return _verify(model, source, as_json)
    loaded = load(model)
    text = loaded.metadata_props.get(RECIPE)
    if text is None:
        why = "graphopt did not write it, --strip was used, or it is a rounded pack"
        raise InputError(f"{model} holds no recipe: {why}")
    recipe = Recipe.from_text(text)
    touched = [n for n in loaded.graph.all_nodes() if BY in n.metadata_props]
    provenance: list[dict[str, Any]] = [
        {"node": n.name, "operator": n.op_type, "from": sources(n), "by": made_by(n)}
        for n in touched
    ]
    kept = json.loads(loaded.metadata_props.get(KEPT, "{}"))
    if as_json:
        emit_json({"recipe": json.loads(recipe.to_text()), "kept": kept, "nodes": provenance})
        return 0
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
        return 0
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
    return 0


def _verify(model: str, source: str, as_json: bool) -> int:
    """Check a certificate again; 4 if an output is not shown to be the source's."""
    from graphopt.formats import load
    from graphopt.proving.certificate import verify
    from graphopt.reporting.text import out

    found = verify(load(source), load(model))
    if as_json:
        failed = [{"value": w.name, "verdict": w.verdict, "means": w.means} for w in found.failed]
        emit_json(
            {
                "holds": found.holds,
                "regions": dict(found.regions),
                "failed": failed,
                "outputs": list(found.outputs),
            }
        )
        return 0 if found.holds else 4
    console = out()
    counts = ", ".join(f"{n} {verdict}" for verdict, n in found.regions.items())
    console.print(f"source and result are those of the certificate; regions: {counts}")
    for window in found.failed:
        console.print(f"  {window.name} ({window.verdict}): {window.means}")
    if found.holds:
        console.print("every output is the source's")
    else:
        console.print(f"not shown to be the source's: {', '.join(found.outputs)}")
    return 0 if found.holds else 4


def _counted(by: Counter[str]) -> str:
    return ", ".join(f"{n} by {name}" for name, n in by.most_common()) or "none"
