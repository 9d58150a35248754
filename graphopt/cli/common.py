"""Options and output that commands share."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from graphopt.errors import UsageError

__all__ = ["emit_json", "finite", "parse_shapes", "shape_option", "standard", "told_apart"]

F = TypeVar("F", bound=Callable[..., Any])


def standard(function: F) -> F:
    """`--json`, `--debug` and `--log-level`, which every command takes."""
    function = click.option(
        "--json", "as_json", is_flag=True, help="Print JSON on stdout instead of tables."
    )(function)
    function = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="warning",
        show_default=True,
        expose_value=False,
        callback=_log,
        help="What is logged on stderr; info: every step as it begins.",
    )(function)
    return click.option(
        "--debug", is_flag=True, help="Show tracebacks, and check what passes claim to preserve."
    )(function)


def _log(ctx: click.Context, parameter: click.Parameter, level: str) -> None:
    """Send what the loggers of graphopt say to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("graphopt")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())


def shape_option(function: F) -> F:
    """`--shape x=1x3x224x224`, as often as needed."""
    return click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=1x3x224x224",
        help="Concrete shape of an input with dynamic axes, for measuring and checking.",
    )(function)


def parse_shapes(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`["x=1x3x224x224"]` -> `{"x": (1, 3, 224, 224)}`. Raises UsageError for anything else."""
    shapes = {}
    for text in given:
        name, equals, dims = text.rpartition("=")
        try:
            sizes = tuple(int(d) for d in dims.lower().split("x")) if dims else ()
        except ValueError:
            sizes = (-1,)
        if not equals or not name or any(d < 0 for d in sizes):
            raise UsageError(f"--shape {text!r}: write NAME=1x3x224x224")
        shapes[name] = sizes
    return shapes


def told_apart(paths: Iterable[str]) -> dict[str, str]:
    """Each path's name, with as many of its folders as tell it from the others."""
    found = {}
    for path in (each := set(paths)):
        parts = Path(path).parts
        others = [Path(p).parts for p in each if p != path]
        ends = (n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others))
        found[path] = str(Path(*parts[-next(ends, len(parts)) :]))
    return found


def emit_json(data: Any) -> None:
    """Print strict JSON: NaN and infinities become null."""
    json.dump(finite(data), sys.stdout, indent=2)
    sys.stdout.write("\n")


def finite(data: Any) -> Any:
    """`data` with NaN and infinities as None, since JSON has neither."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {k: finite(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(v) for v in data]
    return data
