"""`graphopt view`."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click

from graphopt.cli.common import (
    emit_json,
    model_path,
    parse_shapes,
    profile_options,
    shape_option,
    standard,
)
from graphopt.errors import MissingExtra, UsageError


@click.command("view")
@click.argument("model", type=model_path)
@click.option("-o", "--output", metavar="FILE.html", help="Where to write; then nothing is opened.")
@click.option("--netron", is_flag=True, help="Show it in Netron instead, until Ctrl-C.")
@profile_options
@shape_option
@standard
def command(
    model: str,
    output: str | None,
    netron: bool,
    target: str,
    profile: bool,
    shapes: tuple[str, ...],
    as_json: bool,
    debug: bool,
) -> None:
    """Show MODEL as a page: its graph, and what every layer costs.

    One file that loads nothing from anywhere. It opens in the browser; with -o, or where there is
    no display, it is only written.
    """
    if netron:
        if output or profile or shapes or as_json:
            raise UsageError("--netron shows the model as Netron does: give it alone")
        _in_netron(model)
        return
    from graphopt.analyses.binding import bind_shapes
    from graphopt.backend import named_target
    from graphopt.cli.destinations import Destinations, is_page
    from graphopt.cli.progress import progress
    from graphopt.context import Context
    from graphopt.formats import load
    from graphopt.page.facts import profile as timed
    from graphopt.page.model import model_page
    from graphopt.pipeline.prepare import named
    from graphopt.replacing import replace_files
    from graphopt.samples import stand_ins

    where = named_target(target)
    files = Destinations([model, target])
    path = Path(output) if output else Path(tempfile.mkdtemp(prefix="graphopt-"), "model.html")
    files.add(path, "-o", is_page)
    with files.told(), progress(not as_json) as shown:
        shown("drawing", 0, 0)
        loaded = named(load(model))
        bound, _ = bind_shapes(loaded, parse_shapes(shapes))
        ms = {}
        if profile:
            shown("profiling", 0, 0)
            feeds = next(iter(stand_ins(loaded, seed=0, shapes=bound)))
            ms = timed(Context(loaded, target=where, shapes=bound), where, feeds)
        page = model_page(Path(model).name, loaded, bound, ms)
        replace_files([(path, [page])])
    opened = output is None and _opened(path)
    if as_json:
        emit_json({"model": model, "page": str(path), "bytes": len(page), "opened": opened})
    else:
        click.echo(f"{'opened' if opened else 'wrote'} {path}")


def _in_netron(model: str) -> None:
    """Serve the model, as ONNX, to the browser until Ctrl-C. Raises MissingExtra without Netron."""
    if find_spec("netron") is None:
        raise MissingExtra("netron", "--netron")
    import netron

    from graphopt.formats import load, save

    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(model)
        if path.suffix != ".onnx":
            path = Path(folder, "model.onnx")
            save(load(model), path)
        elif not path.is_file():
            load(model)  # which says what is wrong
        host, port = netron.serve(str(path), browse=_display())
        click.echo(f"Netron shows {model} at http://{host}:{port} until Ctrl-C")
        netron.wait()


def _opened(path: Path) -> bool:
    """Whether a browser took the page; none is tried without a display."""
    import webbrowser

    return _display() and webbrowser.open(path.as_uri())


def _display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
