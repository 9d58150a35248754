"""`graphopt pack`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import (
    accuracy_options,
    emit_json,
    loss_options,
    model_path,
    samples_options,
    standard,
)
from graphopt.errors import UsageError

#: Tensors shown; --json has them all.
SHOWN = 20


@click.command("pack")
@click.argument("model", type=model_path)
@click.option("-o", "--output", help="Where to write; default MODEL.gopt beside the model.")
@click.option("--lossless", is_flag=True, help="Keep every byte of the model's files.")
@click.option("-p", "--passes", default="", help="Passes to run before rounding, as `prune, svd`.")
@click.option("--recover", is_flag=True, help="Train what is rounded on the model's own outputs.")
@samples_options
@accuracy_options
@loss_options
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds all that is random.")
@standard
def command(
    model: str, output: str | None, lossless: bool, as_json: bool, debug: bool, **options: Any
) -> None:
    """Write MODEL as one small file (.gopt): exactly, or rounded within a budget.

    With --lossless every byte comes back. With --samples weights become integers of as few bits as
    the budget allows; what is judged is the model as it is decoded. --recover prunes as far as the
    budget allows and trains each trial, without labels.

    \b
    graphopt pack model.onnx --lossless
    graphopt pack model.onnx --samples calib.npz --eval score.py:accuracy --max-drop 0.5
    graphopt pack model.onnx --samples calib.npz --eval score.py:accuracy --max-drop 0.5 --recover
    """
    from graphopt.cli.destinations import Destinations
    from graphopt.cli.progress import progress
    from graphopt.entropy.container import is_pack

    source = Path(model)
    target = Path(output) if output else source.with_suffix(".gopt")
    files = Destinations([source, options["samples"], options["evaluate"]])
    files.add(target, "-o", is_pack)
    judged = ("evaluate", "max_drop", "max_disagreement", "max_error")
    limits = [k for k in judged if options[k] is not None]
    if lossless and (limits or options["samples"] or options["passes"] or options["recover"]):
        raise UsageError("--lossless loses nothing: it takes neither samples, passes nor limits")
    if not lossless and not options["samples"]:
        raise UsageError(
            "say --lossless, or give --samples, which rounding is judged on, and what may be lost"
        )
    if lossless and is_pack(source):
        raise UsageError(f"{model} is a pack already: graphopt unpack gives the ONNX file again")
    with progress(not as_json) as shown:
        if lossless:
            from graphopt.packing.lossless import pack_lossless

            packed: Any = pack_lossless(source, target, shown)
        else:
            packed = _rounded(model, target, options, shown)
    if as_json:
        data = {**dataclasses.asdict(packed), "ratio": packed.ratio}
        emit_json({"model": model, "pack": str(target), **data})
    else:
        _print(packed, target)


def _rounded(model: str, target: Path, options: dict[str, Any], shown: Any) -> Any:
    from graphopt.analyses.held_batch import held_batch
    from graphopt.budget import Budget
    from graphopt.formats import load
    from graphopt.packing.lossy import pack_rounded
    from graphopt.pipeline.state import file_bytes
    from graphopt.samples import open_samples

    names = ("evaluate", "max_drop", "max_disagreement", "max_error")
    budget = Budget(**{k: options[k] for k in names})
    loaded = load(model)
    return pack_rounded(
        loaded,
        target,
        samples=open_samples(
            options["samples"],
            loaded,
            preprocess=options["preprocess"],
            batch=held_batch(loaded),
        ),
        budget=budget,
        before=file_bytes(Path(model), loaded),
        passes=options["passes"],
        recover=options["recover"],
        seed=options["seed"],
        progress=shown,
    )


def _print(packed: Any, target: Path) -> None:
    from graphopt.reporting.text import out, table
    from graphopt.reporting.units import size

    console = out()
    sizes = f"{size(packed.before)} to {size(packed.after)}"
    if not hasattr(packed, "tensors"):
        console.print(f"{sizes}, {1 / packed.ratio:.3f} of it; every byte comes back")
        console.print(f"wrote {target}")
        return
    if packed.passes:
        console.print(f"after {packed.passes}")
    made = table("tensor", "shape", ">bytes", ">bits", ">entropy", ">zeros")
    for t in packed.tensors[:SHOWN]:
        shape = "x".join(map(str, t.shape))
        made.add_row(
            t.name, shape, size(t.after), f"{t.bits:.2f}", f"{t.entropy:.2f}", f"{t.zeros:.0%}"
        )
    if len(packed.tensors) > SHOWN:
        rest = packed.tensors[SHOWN:]
        made.add_row(f"{len(rest)} more", "", size(sum(t.after for t in rest)), "", "", "")
    made.add_row("graph", "", size(packed.graph), "", "", "")
    console.print(made)
    console.print(f"{sizes}, {packed.ratio:.1f} times smaller")
    if packed.metric is not None:
        console.print(f"metric {packed.metric[0]:.6g} to {packed.metric[1]:.6g}")
    if packed.error is not None:
        console.print(f"worst output's relative L2 {packed.error:.3g}")
    console.print(f"wrote {target}")
