"""`graphopt compare`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import (
    accuracy_options,
    emit_json,
    model_path,
    parse_shapes,
    shape_option,
    standard,
)
from graphopt.cli.completion import complete_targets
from graphopt.cli.reports import is_html, ours, write_report
from graphopt.errors import InputError

#: Runs whose outputs are compared.
RUNS = 8
#: Layers shown with --layers; --json has them all.
LAYERS = 40


@click.command("compare")
@click.argument("a", type=model_path)
@click.argument("b", type=model_path)
@click.option("--samples", help="Inputs to compare on; synthetic ones if not given.")
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="Where latency is measured: a name, or FILE.py:BACKEND.",
    shell_complete=complete_targets,
)
@click.option("--measure/--no-measure", default=True, help="Time the two in interleaved pairs.")
@click.option("--measure-seconds", type=float, default=5.0, show_default=True)
@click.option("--layers", is_flag=True, help="Error of every layer the two share, worst first.")
@accuracy_options
@click.option("--max-error", type=float, help="Worst output's relative L2 difference.")
@click.option("--max-size", metavar="10MB|1.05x", help="Largest file of B, or its ratio to A's.")
@click.option("--max-latency", metavar="5ms|1.1x", help="Slowest run of B, or its ratio to A's.")
@click.option("--report", metavar="FILE", help="Write it: a page if it ends in .html, else JSON.")
@shape_option
@standard
def command(a: str, b: str, as_json: bool, debug: bool, **options: Any) -> int:
    """Compare models A and B: outputs, structure, cost and latency side by side.

    With limits it is a gate for CI: exit code 4 if B misses one.
    """
    from graphopt.analyses.binding import bind_shapes
    from graphopt.analyses.held_batch import held_batch
    from graphopt.backend import named_target
    from graphopt.budget import Budget
    from graphopt.cli.destinations import Destinations
    from graphopt.cli.progress import progress
    from graphopt.formats import load
    from graphopt.measuring.gauge import Gauge
    from graphopt.measuring.statistics import verdict
    from graphopt.pipeline.prepare import named
    from graphopt.pipeline.state import State
    from graphopt.samples import open_samples, stand_ins
    from graphopt.samples.rows import row_by_row
    from graphopt.verification.comparison import compare_outputs
    from graphopt.verification.outputs import Judge
    from graphopt.verification.perplexity import bound

    files = Destinations([a, b, *(options[k] for k in ("samples", "evaluate", "target"))])
    if options["report"]:
        files.add(options["report"], "--report", ours(options["report"]))
    limits = ("max_error", "max_drop", "max_size", "max_latency", "evaluate")
    budget = Budget(**{k: options[k] for k in limits})
    target = named_target(options["target"])
    if not options["measure"]:
        target = dataclasses.replace(target, measured=False)
    first, second = named(load(a)), named(load(b))
    _same_interface(first, second)
    shapes, notes = bind_shapes(first, parse_shapes(options["shapes"]))
    drawn = stand_ins(first, seed=0, shapes=shapes)
    samples = drawn
    if options["samples"]:
        samples = open_samples(options["samples"], first, batch=held_batch(first))
    with (
        progress(not as_json) as shown,
        Gauge(target, options["measure_seconds"]) as gauge,
    ):
        shown("running both models", 0, 0)
        judge = Judge(first, list(itertools.islice(iter(samples), RUNS)))
        if judge.unable and (rows := row_by_row(first, samples)) is not None:
            samples, judge = rows, Judge(first, list(itertools.islice(iter(rows), RUNS)))
        if judge.unable:
            raise InputError(judge.unable)
        compared = compare_outputs(judge.source, judge.outputs(second))
        layers = []
        if options["layers"] or is_html(options["report"]):
            from graphopt.verification.layer_errors import layer_errors

            shown("comparing layers", 0, 0)
            layers = [dataclasses.asdict(e) for e in layer_errors(first, second, judge.probe)]
        shown("looking for values outside of calibrated ranges", 0, 0)
        drifts = {k: _drift(Path(p), judge.probe) for k, p in (("a", a), ("b", b))}
        shown("timing", 0, 0)
        states = [State(m, shapes, Path(p)) for m, p in ((first, a), (second, b))]
        evaluate = bound(budget, first, samples if options["samples"] else None).evaluation
        if evaluate is not None:
            shown("evaluating", 0, 0)
            for state in states:
                state.metric(functools.partial(gauge.evaluate, function=evaluate))
        timing = gauge.ratio(states[0], states[1], next(iter(drawn)))
        figures = [state.figures() for state in states]
    data: dict[str, Any] = {
        "a": {"model": a, **dataclasses.asdict(figures[0])},
        "b": {"model": b, **dataclasses.asdict(figures[1])},
        "outputs": {n: dataclasses.asdict(e) for n, e in compared.errors.items()},
        "broken": compared.broken,
        "layers": layers,
        "drift": drifts,
        "equal": judge.equal(compared),
        "synthetic_inputs": samples.synthetic,
        "timing": {**dataclasses.asdict(timing), "verdict": verdict(timing)} if timing else None,
        "notes": notes,
        "missed": [],
    }
    if timing is not None:
        data["a"]["latency_ms"], data["b"]["latency_ms"] = timing.a_ms, timing.b_ms
        figures = [
            dataclasses.replace(f, latency_ms=ms)
            for f, ms in zip(figures, (timing.a_ms, timing.b_ms), strict=True)
        ]
    found = verdict(timing) if timing else None
    data["missed"] = budget.missed(figures[0], figures[1], compared.worst, found)
    page = None
    if is_html(options["report"]):
        from graphopt.page.pair import compare_page

        page = compare_page((a, b), (first, second), shapes, (figures[0], figures[1]), data)
    unwritten = write_report(options["report"], data, page)
    if as_json:
        emit_json(data)
    else:
        _print(data if options["layers"] else {**data, "layers": []})
    if unwritten is not None:
        raise unwritten
    return 4 if data["missed"] else 0


def _drift(path: Path, runs: Any) -> list[dict[str, Any]]:
    """What a quantized model clips; [] for one that is not an ONNX file."""
    from graphopt.deploy.drift import drift

    found = drift(path, runs) if path.suffix == ".onnx" and path.is_file() else []
    return [{**dataclasses.asdict(one), "share": one.share} for one in found]


def _drifted(which: str, values: list[dict[str, Any]]) -> list[Any]:
    """How much lies outside of the calibrated ranges, and where."""
    from graphopt.reporting.text import table

    if not values:
        return []
    count, of = (sum(v[k] for v in values) for k in ("count", "of"))
    left = [v for v in values if v["count"]]
    text = f"{which}: {count:,} of {of:,} values that are quantized lie outside of their ranges"
    if not left:
        return [text]
    made = table("value", ">calibrated", ">seen", ">outside")
    for v in left[:LAYERS]:
        calibrated, seen = f"{v['low']:.3g} to {v['high']:.3g}", f"{v['least']:.3g} to "
        made.add_row(v["name"], calibrated, f"{seen}{v['greatest']:.3g}", f"{v['share']:.3%}")
    return [f"{text}, in {len(left)} of {len(values)} places", made]


def _layers(errors: list[dict[str, Any]]) -> Any:
    """The worst layers first; `added` is what a layer brings in itself."""
    from graphopt.reporting.text import table

    made = table("layer", "operator", ">relative L2", ">added", ">max abs")
    for e in errors[:LAYERS]:
        made.add_row(
            e["node"], e["op_type"], f"{e['rel_l2']:.3g}", f"{e['added']:+.3g}",
            f"{e['max_abs']:.3g}",
        )  # fmt: skip
    if len(errors) > LAYERS:
        made.add_row(f"{len(errors) - LAYERS} more", "", "", "", "")
    return made


def _same_interface(a: Any, b: Any) -> None:
    for kind in ("inputs", "outputs"):
        names = [
            sorted(v.name for v in getattr(m.graph, kind) if v.name not in m.graph.initializers)
            for m in (a, b)
        ]
        if names[0] != names[1]:
            raise InputError(
                f"the models have different {kind}: {', '.join(names[0])} and {', '.join(names[1])}"
            )


def _print(data: dict[str, Any]) -> None:
    from graphopt.reporting.text import out, table
    from graphopt.reporting.units import count, milliseconds, size

    console = out()
    a, b = data["a"], data["b"]
    made = table("", ">a", ">b", ">b / a")
    rows = [
        ("size", "bytes", size),
        ("nodes", "nodes", count),
        ("parameters", "params", count),
        ("MACs", "macs", count),
        ("peak activations", "peak_activation_bytes", size),
        ("latency", "latency_ms", milliseconds),
    ]
    timing = data["timing"]
    noisy = timing is not None and timing["verdict"] == "noisy"
    for label, key, show in rows:
        x, y = a[key], b[key]
        if key == "latency_ms" and noisy:
            made.add_row(label, show(x), show(y), "no verdict")
            continue
        made.add_row(label, show(x), show(y), f"{y / x:.3f}" if x and y else "-")
    if a["metric"] is not None:
        made.add_row("metric", f"{a['metric']:.6g}", f"{b['metric']:.6g}", "-")
    console.print(made)
    if timing is not None:
        (low, high), noise = timing["ci"], f"noise of a against itself {timing['spread']:.1%}"
        console.print(
            f"no verdict on speed: {noise}"
            if noisy
            else f"latency ratio {timing['ratio']:.3f} (95 %: {low:.3f}-{high:.3f}), {noise}, "
            f"{timing['pairs']} pairs"
        )
    errors = table("output", ">relative L2", ">max abs", ">SQNR dB", ">cosine", ">top-1")
    for name, e in data["outputs"].items():
        top1 = "-" if e["top1"] is None else f"{e['top1']:.4f}"
        errors.add_row(
            name, f"{e['rel_l2']:.3g}", f"{e['max_abs']:.3g}", f"{e['sqnr_db']:.1f}",
            f"{e['cosine']:.6f}", top1,
        )  # fmt: skip
    console.print(errors)
    if data["layers"]:
        console.print(_layers(data["layers"]))
    for which, values in data["drift"].items():
        for line in _drifted(which, values):
            console.print(line)
    console.print(data["broken"] or ("outputs are equal" if data["equal"] else "outputs differ"))
    if data["synthetic_inputs"]:
        console.print("inputs were drawn at random; --samples compares on real ones")
    changed = {
        op: (a["operators"].get(op, 0), b["operators"].get(op, 0))
        for op in sorted({*a["operators"], *b["operators"]})
    }
    structure = table("operator", ">a", ">b")
    for op, (x, y) in changed.items():
        if x != y:
            structure.add_row(op, str(x), str(y))
    if structure.row_count:
        console.print(structure)
    for note in (*data["notes"], *data["missed"]):
        console.print(note)
