"""`graphopt search`."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import (
    emit_json,
    evaluation_options,
    loss_options,
    model_path,
    parse_shapes,
    samples_options,
    shape_option,
    standard,
    track_option,
)
from graphopt.cli.completion import complete_passes, complete_targets
from graphopt.cli.reports import is_html, ours, write_report
from graphopt.errors import UsageError

#: What a front's folder holds besides models.
TABLE, PLOT = "front.md", "front.svg"


@click.command("search")
@click.argument("model", type=model_path)
@click.option(
    "-p",
    "--passes",
    help="What may be used, e.g. 'prune, int8'; default: everything.",
    shell_complete=complete_passes,
)
@click.option("-o", "--output", help="Where to write; default MODEL.opt.onnx beside the model.")
@click.option(
    "--minimize",
    type=click.Choice(["latency", "size", "macs", "memory"]),
    default="latency",
    show_default=True,
    help="What is to be small.",
)
@click.option(
    "--target",
    "--targets",
    "target",
    default="cpu",
    show_default=True,
    help="Where the result will run: a name, or FILE.py:BACKEND; several: cpu,openvino.",
    shell_complete=complete_targets,
)
@samples_options
@evaluation_options
@loss_options
@click.option("--trials", type=int, default=24, show_default=True, help="Candidates to evaluate.")
@click.option("--time", "seconds", metavar="30m", help="Begin no trial after this: 90s, 30m, 2h.")
@click.option(
    "--workers", type=int, default=1, show_default=True, help="Processes that evaluate trials."
)
@click.option(
    "--ray", metavar="ADDRESS", help="Evaluate on this Ray cluster; 'local' starts one here."
)
@click.option(
    "--recover",
    is_flag=False,
    flag_value="distill",
    metavar="[PASS]",
    help="Train candidates that lose too much as they are; default distill (needs PyTorch).",
)
@click.option("--trial-timeout", metavar="5m", help="End a trial that takes longer.")
@click.option(
    "--study", metavar="FILE|URL", help="Keep the trials here; a search with the same one goes on."
)
@click.option("--front", metavar="DIR", help="Write every model that no other beats.")
@click.option(
    "--keep-best", is_flag=True, help="Write the nearest model when no candidate keeps the limits."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds all that is random.")
@shape_option
@click.option(
    "--measure-seconds", type=float, default=5.0, show_default=True, help="Timing per finalist."
)
@click.option(
    "--cache",
    metavar="DIR|off",
    help="Costs and losses measured by earlier runs; default ~/.cache/graphopt.",
)
@click.option(
    "--report",
    "report_file",
    metavar="FILE",
    help="Write the report: a page if it ends in .html, else JSON.",
)
@track_option
@standard
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> int:
    """Find the cheapest model of MODEL that loses no more than it may.

    \b
    graphopt search model.onnx --samples calib.npz --eval score.py:accuracy --max-drop 0.5

    Every layer's size, rank and precision is chosen jointly, from what each costs on the target and
    what it loses. Ctrl-C ends with the best so far. The result is an optimized model like any
    other: `graphopt optimize --replay` repeats it.
    """
    options["command"] = shlex.join(["graphopt", *ctx.obj])
    return _run(options)


def _run(options: dict[str, Any]) -> int:
    from graphopt.budget import Budget
    from graphopt.cli.destinations import Destinations, is_model
    from graphopt.cli.progress import progress
    from graphopt.deploy.manifest import check_manifest, manifest_path
    from graphopt.searching.search import search

    source = Path(options["model"])
    output = Path(options["output"] or source.with_name(f"{source.stem}.opt.onnx"))
    targets = [name.strip() for name in options["target"].split(",")]
    read = ("model", "samples", "evaluate", "study")
    files = Destinations([*(options[k] for k in read), *targets])
    outputs = _places(output, targets)
    for path in outputs.values():
        files.add(path, "-o", is_model)
        check_manifest(path)
        files.add(manifest_path(path), "the manifest of -o", lambda path: True)
    if options["report_file"]:
        files.add(options["report_file"], "--report", ours(options["report_file"]))
    front = Path(options["front"]) if options["front"] else None
    if front is not None and front.exists() and not front.is_dir():
        raise UsageError(f"--front {front} is not a folder")
    limits = ("max_drop", "max_error", "max_disagreement", "max_size", "max_latency", "evaluate")
    as_json = options["as_json"]
    same = ("samples", "track", "minimize", "passes", "trials", "workers", "study", "seed", "ray")
    with files.told(), progress(not as_json) as shown, _watched(not as_json) as watch:
        found = search(
            options["model"],
            target=targets,
            budget=Budget(**{k: options[k] for k in limits}),
            shapes=parse_shapes(options["shapes"]),
            seconds=_seconds("--time", options["seconds"]),
            trial_timeout=_seconds("--trial-timeout", options["trial_timeout"]),
            front=front is not None,
            progress=None if watch else shown,
            watch=watch,
            **{k: options[k] for k in (*same, "recover", "preprocess", "cache", "measure_seconds")},
        )
        each = [found, *found.others.values()]
        reports: list[Any] = []
        written: list[list[Path]] = []
        for (name, path), one in zip(outputs.items(), each, strict=True):
            report, files_made = one.result.report, list[Path]()
            if one.result.met or options["keep_best"]:
                made = one.result.write(path, closest=True, progress=shown)
                report, files_made = made.report, list(made.files)
            if front is not None:
                files_made += _write_front(one, front / name if found.others else front)
            reports.append(dataclasses.replace(report, command=options["command"]))
            written.append(files_made)
    rows = [_data(one, report) for one, report in zip(each, reports, strict=True)]
    data = rows[0]
    if found.others:
        data["others"] = dict(zip(found.others, rows[1:], strict=True))
    page = None
    if is_html(options["report_file"]):
        from graphopt.page.run import search_page

        page = search_page(found.setting, found.result, reports[0], data["search"])
    unwritten = write_report(options["report_file"], data, page)
    if as_json:
        emit_json(data)
    else:
        for shown_as in zip(each, reports, written, strict=True):
            _print(*shown_as, titled=bool(found.others))
    if unwritten is not None:
        raise unwritten
    return 0 if found.met else 4


def _places(output: Path, targets: list[str]) -> dict[str, Path]:
    """Where the model of each target goes: several have the target's name in theirs."""
    from graphopt.backend import named_target

    names = [named_target(target).name for target in dict.fromkeys(targets)]
    if len(names) == 1:
        return {names[0]: output}
    return {name: output.with_name(f"{output.stem}.{name}{output.suffix}") for name in names}


def _data(found: Any, report: Any) -> dict[str, Any]:
    """One target's report, with recipe and search, as plain data."""
    recipe = json.loads(found.result.recipe.to_text())
    return {**report.to_json(), "recipe": recipe, "search": found.report.to_json()}


def _seconds(option: str, text: str | None) -> float | None:
    """`90s`, `30m`, `2h`, or a number of seconds. Raises UsageError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([smh]?)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{option} {text!r}: write for example 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@contextmanager
def _watched(enabled: bool) -> Iterator[Callable[[Any], None] | None]:
    """A live view on stderr, where that is a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console, Group
    from rich.live import Live

    from graphopt.reporting.text import table

    live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)

    def show(standing: Any) -> None:
        made = table("front", ">loss", ">cost", ">size")
        for trial in standing.front[:12]:
            made.add_row(
                "best" if trial is standing.best else "",
                f"{trial.loss:.4g}",
                f"{trial.predicted.latency:.3g} ms" if trial.predicted.latency else "",
                f"{trial.outcome.size or 0:,}",
            )
        left = f", {standing.left:.0f} s left" if standing.left is not None else ""
        live.update(Group(f"{len(standing.trials)} trials: {standing.doing}{left}", made))

    with live:
        yield show


def _write_front(found: Any, folder: Path) -> list[Path]:
    """The front's models, each with its recipe inside, a table and a plot."""
    from graphopt.formats import save
    from graphopt.replacing import replace_files
    from graphopt.searching.front import front_svg, front_table

    folder.mkdir(parents=True, exist_ok=True)
    report, rows, paths = found.report, [], []
    figure = {"latency": "latency_ms"}.get(report.minimize, report.minimize)
    for k, (row, result) in enumerate(zip(report.front, found.front, strict=True)):
        path = folder / f"{k:02}.onnx"
        save(result.model, path)
        paths.append(path)
        rows.append({"model": path.name, **{n: v for n, v in row.items() if n != "reason"}})
    done = [r for r in report.trials if r["loss"] is not None]
    points, line = ([(r[figure] or 0.0, r["loss"]) for r in rs] for rs in (done, report.front))
    names = (figure, report.loss)
    contents = [
        (folder / TABLE, [front_table(rows).encode()]),
        (folder / PLOT, [front_svg(points, line, names, report.limit).encode()]),
    ]
    for one in contents:
        replace_files([one])
    return [*paths, *(path for path, _ in contents)]


def _print(found: Any, report: Any, written: list[Path], *, titled: bool) -> None:
    from graphopt.reporting.text import out, print_report, print_table, table

    console, told = out(), found.report
    if titled:
        console.print(f"target {report.target}")
    print_report(console, report)
    made = table("layer", "option", f">{told.minimize} saved", f">{told.loss} (predicted)")
    for one in told.layers:
        made.add_row(one.layer, one.option, f"{one.saved:.1%}", f"{one.loss:.3g}")
    if made.row_count:
        print_table(console, made, keys=2)
    tried = sum(row["loss"] is not None for row in told.trials)
    console.print(
        f"{tried} candidates evaluated, {len(told.front)} on the front; {told.next}"
        + ("; ended early" if told.interrupted else "")
    )
    for note in told.notes:
        console.print(note)
    if written:
        console.print(f"wrote {', '.join(map(str, written))}")
    else:
        console.print(
            "no candidate keeps the limits: nothing was written (--keep-best writes the nearest)"
        )
