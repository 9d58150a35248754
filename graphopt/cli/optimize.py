"""`graphopt optimize`."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import (
    emit_json,
    evaluation_options,
    model_path,
    parse_shapes,
    samples_options,
    shape_option,
    standard,
    track_option,
)
from graphopt.cli.completion import complete_passes, complete_targets
from graphopt.cli.config import with_config
from graphopt.cli.outputs import destinations, folder_of, new_folder, output_of, suffix_of
from graphopt.cli.reports import is_html, write_report
from graphopt.errors import UsageError


def _trusted(names: str) -> tuple[str, ...]:
    """Names with commas between them: the weakest evidence, and what a file may be."""
    known = ("checked", "assumed", "pickle")
    for name in names.split(","):
        if name not in known:
            raise click.BadParameter(f"'{name}' is not one of {', '.join(known)}")
    return tuple(names.split(","))


@click.command("optimize")
@click.argument("model")
@click.option(
    "-p",
    "--passes",
    help="The pipeline, e.g. 'prune(ratio=0.3), fuse, int8'.",
    shell_complete=complete_passes,
)
@click.option("-o", "--output", help="Where to write; default MODEL.opt.onnx beside the model.")
@click.option(
    "--emit",
    type=click.Choice(["onnx", "torch"]),
    help="What to write: .onnx, or .pt2 for PyTorch; default as -o ends.",
)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="Where the result will run: a name, FILE.py:BACKEND, or auto: the fastest here.",
    shell_complete=complete_targets,
)
@samples_options
@evaluation_options
@click.option(
    "--max-error",
    metavar="X|none",
    help="Worst output's relative L2 difference to the source; none: nothing judges lossy steps.",
)
@click.option(
    "--max-disagreement",
    metavar="X|none",
    help="Share of decisions on the samples that lossy steps may change; default 0.01.",
)
@click.option(
    "--require-verdict",
    is_flag=True,
    help="Miss the budget (exit code 4) where timing is too noisy to say which model is faster.",
)
@click.option(
    "--keep-best", is_flag=True, help="Write the closest model when the budget is missed."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds all that is random.")
@click.option(
    "--max-opset", type=int, metavar="N", help="Raise the model's opset to N at most, if at all."
)
@shape_option
@click.option(
    "--verify",
    type=click.Choice(["outputs", "graph"]),
    default="outputs",
    show_default=True,
    help="Compare outputs and prove edits after every pass, or only check the graph.",
)
@click.option(
    "--trust",
    default="checked",
    metavar="checked|assumed|pickle,...",
    show_default=True,
    type=_trusted,
    help="The weakest evidence that an exact edit may stand on; pickle: MODEL may be one.",
)
@click.option("--measure/--no-measure", default=True, help="Time every step; undo slower ones.")
@click.option(
    "--measure-seconds", type=float, default=5.0, show_default=True, help="Timing per step."
)
@click.option(
    "--cache",
    metavar="DIR|off",
    help="Timings of earlier runs on this machine; default ~/.cache/graphopt.",
)
@click.option("--replay", metavar="RECIPE", help="Repeat the decisions of a model or recipe.json.")
@click.option(
    "--dry-run", is_flag=True, help="Check model, samples, passes and paths; write nothing."
)
@click.option(
    "--report",
    "report_file",
    metavar="FILE",
    help="Write the report: a page if it ends in .html, else JSON.",
)
@track_option
@click.option(
    "--external-data/--no-external-data",
    default=None,
    help="Weights in NAME.onnx.data beside the graph; default: one file below 1.9 GB.",
)
@click.option("--strip", is_flag=True, help="Leave recipe and provenance out of the output.")
@click.option(
    "--config", help="Options from this TOML file; default ./graphopt.toml or pyproject.toml."
)
@standard
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Run passes over MODEL and write the result.

    MODEL is an .onnx file, a .pt2 file of torch.export, FILE.py:FUNCTION, a function that returns a
    PyTorch module with example inputs, or a folder of onnxruntime-genai, of which one is written.

    \b
    graphopt optimize model.onnx -p prune,fuse,int8 --samples calib.npz -o model.opt.onnx
    """
    options = with_config(ctx, given)
    if options["replay"] and not options["passes"]:
        options["passes"] = _passes_of(options["replay"])
    if not options["passes"]:
        raise UsageError("no passes given: add -p, for example -p clean,fold,fuse")
    options["command"] = shlex.join(["graphopt", *ctx.obj])
    return _run(options)


def _passes_of(path: str) -> str:
    """The passes of the recipe at `path`. Raises UsageError if it names code."""
    from graphopt.pipeline.recipe import read
    from graphopt.user_code import names_code

    passes = ", ".join(step.spec for step in read(path).steps)
    if names_code(passes):
        raise UsageError(
            f"the recipe in {path} names code, which runs only if you name it: add -p '{passes}' "
            "with your own files"
        )
    return passes


def _run(options: dict[str, Any]) -> int:
    from graphopt.analyses.held_batch import held_batch
    from graphopt.backend import named_target
    from graphopt.cli.progress import progress
    from graphopt.formats import load
    from graphopt.io.genai import carry, companions
    from graphopt.pipeline.optimize import optimize
    from graphopt.pipeline.recipe import read
    from graphopt.samples import open_samples
    from graphopt.spec import parse

    passes = parse(options["passes"])
    replay = read(options["replay"]) if options["replay"] else None
    target = "auto" if options["target"] == "auto" else named_target(options["target"])
    budget = _budget(options)
    shapes = parse_shapes(options["shapes"])
    suffix = suffix_of(options["output"], options["emit"], options["external_data"], target)
    source = Path(model_path(options["model"]))
    folder = options["model"] if source.parent == Path(options["model"]) else None
    output = output_of(source, options["output"], suffix)
    if folder is not None and (into := folder_of(folder, options["output"], suffix)) is not None:
        output = click.get_current_context().with_resource(new_folder(into)) / source.name
    else:
        folder = None
    with progress(not options["as_json"]) as shown:  # other frameworks' converters take seconds
        shown(f"reading {source.name}", 0, 0)
        model = load(source, trust="pickle" if "pickle" in options["trust"] else "")
    samples = None
    if options["samples"]:
        how = {"preprocess": options["preprocess"], "batch": held_batch(model)}
        samples = open_samples(options["samples"], model, **how)
    written: list[Path] = []
    files = destinations(options, passes, model, output)
    if folder:
        companions(Path(folder), output.parent)
    with files.told():
        with progress(not options["as_json"]) as shown:
            given: dict[str, Any] = {
                "samples": samples,
                "budget": budget,
                "shapes": shapes,
                "progress": shown,
                "source_path": source,
                **{k: options[k] for k in ("seed", "verify", "measure", "measure_seconds")},
                **{k: options[k] for k in ("cache", "debug", "max_opset")},
                "trust": "assumed" if "assumed" in options["trust"] else "checked",
            }
            if options["dry_run"]:
                from graphopt.cli.plan import show_plan
                from graphopt.pipeline.prepare import prepare

                where = "cpu" if target == "auto" else target
                given["measure"] = options["measure"] and replay is None
                setting = prepare(model, target=where, **given)
                show_plan(setting, passes, options["target"], files.named(), options["as_json"])
                return 0
            watched = None
            if is_html(options["report_file"]):
                from graphopt.page.run import Watched

                watched = Watched()
                given["watch"] = watched.watch
            result = optimize(
                model, passes, target=target, replay=replay, track=options["track"], **given
            )
            report = result.report
            if result.met or options["keep_best"]:
                made = result.write(
                    output,
                    closest=True,
                    strip_provenance=options["strip"],
                    external=options["external_data"],
                    progress=shown,
                )
                report, written = made.report, list(made.files)
                written += carry(Path(folder), output.parent) if folder else []
            report = dataclasses.replace(report, command=options["command"])
            if watched is not None:
                shown("drawing the page", 0, 0)
            page = watched.page(report) if watched is not None else None
        data = {**report.to_json(), "recipe": json.loads(result.recipe.to_text())}
        unwritten = write_report(options["report_file"], data, page)
        if options["as_json"]:
            emit_json(data)
        else:
            _print(report, written)
        if unwritten is not None:
            raise unwritten
    return 0 if result.met else 4


def _budget(options: dict[str, Any]) -> Any:
    from graphopt.budget import Budget

    error = _limit("--max-error", options["max_error"])
    disagreement = _limit("--max-disagreement", options["max_disagreement"])
    if error == math.inf:
        error, disagreement = None, math.inf if disagreement is None else disagreement
    budget = Budget(
        max_error=error,
        max_disagreement=disagreement,
        max_drop=options["max_drop"],
        max_size=options["max_size"],
        max_latency=options["max_latency"],
        require_verdict=options["require_verdict"],
        evaluate=options["evaluate"],
    )
    budget.evaluation  # noqa: B018  a function that is not there is told before anything runs
    return budget


def _limit(option: str, given: str | float | None) -> float | None:
    """A number, or infinity for none. Raises UsageError for anything else."""
    if given is None:
        return None
    try:
        return math.inf if str(given).lower() == "none" else float(given)
    except ValueError:
        raise UsageError(f"{option} takes a number or none, not {given!r}") from None


def _print(report: Any, files: Sequence[Path]) -> None:
    from graphopt.reporting.text import out, print_report

    console = out()
    print_report(console, report)
    if files:
        console.print(f"wrote {', '.join(map(str, files))}")
    else:
        console.print("the budget is missed: nothing was written (--keep-best writes the closest)")
