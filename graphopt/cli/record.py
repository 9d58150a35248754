"""`graphopt record`."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli.common import emit_json, standard
from graphopt.errors import SamplesError, UsageError


@click.command("record", context_settings={"ignore_unknown_options": True})
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("-o", "--output", default="samples", show_default=True, help="New folder.")
@click.option("--most", default=128, show_default=True, type=click.IntRange(1), help="Runs kept.")
@standard
def command(
    program: str, arguments: tuple[str, ...], output: str, most: int, as_json: bool, debug: bool
) -> None:
    """Run PROGRAM (Python) and record what it feeds each model, as samples for `optimize`.

    Its onnxruntime.InferenceSession is wrapped, nothing in it is changed. Each model gets a folder
    below the output, of one .npz a run. Options that PROGRAM takes too follow after `--`.
    """
    import subprocess
    import sys

    from graphopt.samples import recorder

    folder = Path(output)
    if not Path(program).is_file():
        raise UsageError(f"{program}: no such program")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{output} exists and is not empty: name another folder with -o")
    started = [sys.executable, recorder.__file__, output, str(most), program, *arguments]
    done = subprocess.run(started, stdout=2 if as_json else None)
    counts = {f.name: len(list(f.glob("*.npz"))) for f in sorted(folder.glob("*/")) if f.is_dir()}
    if done.returncode:
        raise SamplesError(
            f"{program} ended with {done.returncode}; {sum(counts.values())} runs were recorded"
        )
    if not counts:
        raise SamplesError(
            f"{program} ran no model with onnxruntime.InferenceSession.run: nothing was recorded"
        )
    if as_json:
        emit_json({"samples": {str(folder / name): n for name, n in counts.items()}})
        return
    from graphopt.reporting.text import out

    for name, n in counts.items():
        out().print(f"{n} runs of {name}: --samples {folder / name}", markup=False)
