"""`graphopt demo`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import emit_json, standard
from graphopt.cli.completion import complete_passes
from graphopt.cli.reports import is_html, ours, write_report

DATA = Path(__file__).parents[1] / "data"
#: About how long one comparison of latencies takes.
SECONDS = 0.8


@click.command("demo")
@click.option(
    "-p",
    "--passes",
    default="prune,fuse,int8",
    show_default=True,
    shell_complete=complete_passes,
)
@click.option("-o", "--output", help="Keep the result here.")
@click.option("--report", metavar="FILE", help="Write the report: a page if it ends in .html.")
@standard
@click.pass_context
def command(
    ctx: click.Context,
    /,
    passes: str,
    output: str | None,
    report: str | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Optimize a small network trained on handwritten digits, and show every figure.

    Accuracy is on 450 held-out images; calibration uses 256 training images without labels.
    """
    from graphopt.cli.destinations import Destinations, is_model
    from graphopt.cli.progress import progress
    from graphopt.formats import load
    from graphopt.pipeline.optimize import optimize
    from graphopt.samples import open_samples

    source = DATA / "digits.onnx"
    files = Destinations([source, DATA / "digits.npz"])
    if output:
        files.add(output, "-o", is_model)
    if report:
        files.add(report, "--report", ours(report))
    arrays = digits()
    watched = None
    if is_html(report):
        from graphopt.page.run import Watched

        watched = Watched()
    with progress(not as_json) as shown:
        result = optimize(
            source,
            passes,
            samples=open_samples({"image": arrays["calibration"]}, load(source)),
            budget=_accuracy_budget(arrays),
            measure_seconds=SECONDS,
            debug=debug,
            progress=shown,
            watch=watched.watch if watched else None,
        )
        told = result.write(Path(output)).report if output else result.report
        told = dataclasses.replace(told, command=shlex.join(["graphopt", *ctx.obj]))
        page = watched.page(told) if watched else None
    data = {**told.to_json(), "recipe": json.loads(result.recipe.to_text())}
    unwritten = write_report(report, data, page)
    if unwritten is not None:
        raise unwritten
    if as_json:
        emit_json(told.to_json())
        return
    from graphopt.reporting.text import out, print_report

    console = out()
    console.print("digits.onnx: handwritten digits, 8x8; metric: accuracy on 450 held-out images")
    console.print()
    print_report(console, told)


def digits() -> dict[str, Any]:
    """Calibration images, held-out images (float32, N x 1 x 8 x 8, in 0..1) and their labels."""
    import numpy as np

    with np.load(DATA / "digits.npz") as data:
        return {
            "calibration": data["calibration"].astype(np.float32) / 16,
            "images": data["images"].astype(np.float32) / 16,
            "labels": data["labels"],
        }


def _accuracy_budget(arrays: dict[str, Any]) -> Any:
    from graphopt.budget import Budget

    def accuracy(predict: Callable[..., Any]) -> float:
        logits = predict({"image": arrays["images"]})["logits"]
        return float((logits.argmax(1) == arrays["labels"]).mean())

    return Budget(evaluate=accuracy)
