"""`graphopt merge`."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli.common import emit_json, model_path, standard

#: Relative L2 difference that rounding a mean brings.
TOLERANCE = 1e-5


@click.command("merge")
@click.argument("models", nargs=-1, required=True, type=model_path)
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to write.")
@click.option(
    "--combine",
    type=click.Choice(["mean", "vote", "concat", "none"]),
    default="none",
    show_default=True,
    help="What becomes of outputs at the same place.",
)
@standard
def command(models: tuple[str, ...], output: str, combine: Any, as_json: bool, debug: bool) -> int:
    """Write MODELS as one model that shares inputs, weights and what is computed alike.

    Inputs of one name are one input. The result is compared with the models it was made of.
    """
    from graphopt.cli.destinations import Destinations, is_model
    from graphopt.errors import PassError
    from graphopt.formats import load, save
    from graphopt.pipeline.optimize import optimize
    from graphopt.reporting.units import size
    from graphopt.rewriting.merging import merge
    from graphopt.verification.merged import merged_error

    files = Destinations(list(models))
    files.add(output, "-o", is_model)
    loaded = [load(path) for path in models]
    whole = merge(loaded, combine)
    result = optimize(whole, "clean", measure=False)
    error = merged_error(loaded, result.model, combine)
    if not error <= TOLERANCE:
        raise PassError(f"the merged model says something else: a difference of {error:.1g}")
    save(result.model, output)
    before, after = result.report.before, result.report.after
    if as_json:
        found = {"nodes": [before.nodes, after.nodes], "bytes": [before.bytes, after.bytes]}
        emit_json({"models": list(models), "output": output, "error": error, **found})
        return 0
    click.echo(
        f"{' + '.join(models)}: {size(before.bytes)} and {before.nodes} nodes became "
        f"{size(after.bytes)} and {after.nodes} nodes; they differ by {error:.1g}"
    )
    click.echo(f"wrote {output}")
    return 0
