"""`graphopt bench`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import (
    emit_json,
    model_path,
    parse_shapes,
    shape_option,
    standard,
    told_apart,
)
from graphopt.cli.completion import complete_targets
from graphopt.errors import UsageError


@click.command("bench")
@click.argument("models", type=model_path, nargs=-1, required=True)
@click.option(
    "--targets",
    default="cpu",
    show_default=True,
    help="Comma-separated names, or FILE.py:BACKEND; 'auto' is all.",
    shell_complete=complete_targets,
)
@click.option("--threads", default="", help="Comma-separated numbers of threads, e.g. 1,2.")
@click.option("--batch", default="", help="Comma-separated sizes of a free batch axis, e.g. 1,8.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Per batch size.")
@click.option("--plot", metavar="FILE.svg", help="Draw the latencies.")
@click.option(
    "--tokens",
    type=click.IntRange(1),
    help="Time decoders with caches instead: a prompt of 128, then so many tokens one by one.",
)
@shape_option
@standard
def command(models: tuple[str, ...], as_json: bool, debug: bool, **options: Any) -> None:
    """Time MODELS beside each other: latency, throughput, load time and memory.

    Every model runs on every target, number of threads and batch size. The rows of one batch size
    are timed in interleaved rounds, so that they compare even on a busy machine.
    """
    from graphopt.cli.progress import progress
    from graphopt.measuring.benchmark import benchmark

    plot = options["plot"]
    if options["tokens"]:
        _decode(models, options, as_json)
        return
    if plot and not plot.endswith(".svg"):
        raise UsageError(f"--plot {plot!r}: the plot is an SVG; name it FILE.svg")
    if plot:
        from graphopt.cli.destinations import Destinations, is_plot

        read = [*models, *options["targets"].split(",")]
        Destinations(read).add(plot, "--plot", is_plot)
    with progress(not as_json) as shown:
        found = benchmark(
            [Path(m) for m in models],
            _targets(options["targets"]),
            threads=_numbers("--threads", options["threads"]),
            batches=_numbers("--batch", options["batch"]),
            shapes=parse_shapes(options["shapes"]),
            seconds=options["seconds"],
            progress=shown,
        )
    if plot:
        from graphopt.cli.plot import latency_svg
        from graphopt.replacing import replace_files

        replace_files([(Path(plot), [latency_svg(found.rows).encode()])])
    if as_json:
        noise = {"fixed" if k is None else str(k): v for k, v in found.noise.items()}
        emit_json({"rows": [dataclasses.asdict(r) for r in found.rows], "noise": noise})
    else:
        _print(found)


def _decode(models: tuple[str, ...], options: dict[str, Any], as_json: bool) -> None:
    from graphopt.cli.progress import progress
    from graphopt.measuring.decoding import decode
    from graphopt.reporting.text import out, print_table, table
    from graphopt.reporting.units import size

    if options["plot"] or options["batch"] or options["targets"] != "cpu":
        raise UsageError("--tokens times one sequence on the CPU: leave --plot, --batch, --targets")
    threads = _numbers("--threads", options["threads"]) or [0]
    rows = []
    with progress(not as_json) as shown:
        for k, path in enumerate(models):
            shown(f"decoding with {Path(path).name}", k, len(models))
            rows += [decode(Path(path), new=options["tokens"], threads=count) for count in threads]
    if as_json:
        emit_json({"rows": [dataclasses.asdict(row) for row in rows]})
        return
    made = table(
        "model", ">prompt tokens/s", ">new tokens/s", ">of roofline", ">reads per token", ">memory"
    )
    names = told_apart([row.model for row in rows])
    for row in rows:
        made.add_row(
            names[row.model],
            f"{row.prompt_per_second:.4g}",
            f"{row.new_per_second:.4g}",
            f"{row.new_per_second / row.roofline:.0%}",
            size(row.weight_bytes),
            size(row.memory_bytes),
        )
    console = out()
    print_table(console, made, keys=1)
    told = ", ".join(f"{row.bandwidth / 1e9:.3g}" for row in rows)
    console.print(f"memory bandwidth of a triad, GB/s: {told}; the roofline is that over the reads")


def _targets(text: str) -> list[Any]:
    from graphopt.backend import named_target
    from graphopt.measuring.fastest_target import runnable

    names = [n.strip() for n in text.split(",") if n.strip()]
    if names == ["auto"]:
        return runnable()[0]
    if not names:
        raise UsageError("--targets names no target; write for example --targets cpu,openvino")
    return [named_target(n) for n in names]


def _numbers(option: str, text: str) -> list[int]:
    """`"1,8"` -> `[1, 8]`. Raises UsageError for anything but positive integers."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise UsageError(f"{option} {text!r}: write positive numbers, for example 1,8")
    return [int(p) for p in parts]


def _print(found: Any) -> None:
    from graphopt.reporting.text import out, print_table, table
    from graphopt.reporting.units import milliseconds, size

    console = out()
    made = table(
        "model", "target", ">threads", ">batch", ">median", ">p90", ">p99", ">per second",
        ">x first", ">load", ">memory",
    )  # fmt: skip
    names = told_apart([row.model for row in found.rows])
    for row in found.rows:
        if row.refused:
            continue
        made.add_row(
            names[row.model],
            row.target,
            str(row.threads),
            "-" if row.batch is None else str(row.batch),
            *map(milliseconds, (row.median_ms, row.p90_ms, row.p99_ms)),
            f"{row.per_second:.4g}",
            f"{row.ratio:.3f} +-{(row.ci[1] - row.ci[0]) / 2:.3f}",
            milliseconds(row.load_ms),
            size(row.memory_bytes),
        )
    if made.row_count:
        print_table(console, made, keys=4)
    for batch, spread in found.noise.items():
        where = "" if batch is None else f" at batch {batch}"
        console.print(f"noise of the first row against itself{where}: {spread:.1%}")
    for row in found.rows:
        if row.refused:
            console.print(f"{names[row.model]} on {row.target}: {row.refused}")
