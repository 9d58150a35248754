"""`graphopt view`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

from graphopt.cli.common import emit_json, parse_shapes, profile_options, shape_option, standard


@click.command("view")
@click.argument("model")
@click.option("-o", "--output", metavar="FILE.html", help="Where to write; then nothing is opened.")
@profile_options
@shape_option
@standard
def command(
    model: str,
    output: str | None,
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
    from graphopt.analyses.demand import unfit_for
    from graphopt.backend import named_target
    from graphopt.cli.destinations import Destinations, is_page
    from graphopt.cli.progress import progress
    from graphopt.context import Context
    from graphopt.formats import load
    from graphopt.page.facts import profile as timed
    from graphopt.page.model import model_page
    from graphopt.pipeline.prepare import named
    from graphopt.replacing import replace_files
    from graphopt.samples import bind_shapes, stand_ins

    where = named_target(target)
    files = Destinations([model, target])
    path = Path(output) if output else Path(tempfile.mkdtemp(prefix="graphopt-"), "model.html")
    files.add(path, "-o", is_page)
    with files.told(), progress(not as_json) as shown:
        shown("drawing", 0, 0)
        loaded = named(load(model))
        bound, _ = bind_shapes(loaded, parse_shapes(shapes), unfit=unfit_for(loaded))
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


def _opened(path: Path) -> bool:
    """Whether a browser took the page; none is tried without a display."""
    import webbrowser

    shown = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return shown and webbrowser.open(path.as_uri())
