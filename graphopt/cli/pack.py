"""`graphopt pack`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import emit_json, standard
from graphopt.errors import UsageError


@click.command("pack")
@click.argument("model")
@click.option("-o", "--output", help="Where to write; default MODEL.gopt beside the model.")
@click.option("--lossless", is_flag=True, help="Keep every byte of the model's files.")
@standard
def command(model: str, output: str | None, lossless: bool, as_json: bool, debug: bool) -> None:
    """Write MODEL as one small file (.gopt).

    \b
    graphopt pack model.onnx --lossless -o model.gopt
    """
    from graphopt.cli.destinations import Destinations
    from graphopt.cli.progress import progress
    from graphopt.entropy.container import is_pack
    from graphopt.packing.lossless import pack_lossless

    source = Path(model)
    target = Path(output) if output else source.with_suffix(".gopt")
    Destinations([source]).add(target, "-o", is_pack)
    if not lossless:
        raise UsageError("say --lossless")
    with progress(not as_json) as shown:
        packed = pack_lossless(source, target, shown)
    if as_json:
        data = {**dataclasses.asdict(packed), "ratio": packed.ratio}
        emit_json({"model": model, "pack": str(target), **data})
    else:
        _print(packed, target)


def _print(packed: Any, target: Path) -> None:
    from graphopt.reporting.text import out
    from graphopt.reporting.units import size

    console = out()
    sizes = f"{size(packed.before)} to {size(packed.after)}, {packed.ratio:.3f} of it"
    console.print(f"{sizes}; every byte comes back")
    console.print(f"wrote {target}")
