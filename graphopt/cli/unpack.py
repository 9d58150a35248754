"""`graphopt unpack`."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli.common import emit_json, standard


@click.command("unpack")
@click.argument("pack")
@click.option("-o", "--output", help="Where to write; default PACK.onnx beside the pack.")
@standard
def command(pack: str, output: str | None, as_json: bool, debug: bool) -> None:
    """Write the model in PACK (a .gopt file) as ONNX.

    External data is written beside it, under its own name. Every byte is checked: a pack that is
    damaged is refused, and nothing is written then.

    \b
    graphopt unpack model.gopt -o model.onnx
    """
    from graphopt.cli.destinations import Destinations, is_model
    from graphopt.entropy.container import unpack
    from graphopt.errors import ModelError

    source = Path(pack)
    target = Path(output) if output else source.with_suffix(".onnx")
    Destinations([source]).add(target, "-o", is_model)
    try:
        written = unpack(source, target)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error.__cause__
    if as_json:
        emit_json({"pack": pack, "files": [str(p) for p in written]})
        return
    from graphopt.reporting.text import out

    out().print(f"wrote {', '.join(map(str, written))}")
