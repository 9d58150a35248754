"""Options and output that commands share."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from graphopt.cli.completion import complete_targets
from graphopt.errors import ModelError, UsageError
from graphopt.reporting.records import finite

__all__ = [
    "accuracy_options",
    "emit_json",
    "evaluation_options",
    "loss_options",
    "model_path",
    "parse_shapes",
    "profile_options",
    "samples_options",
    "shape_option",
    "standard",
    "told_apart",
    "track_option",
]

F = TypeVar("F", bound=Callable[..., Any])


def model_path(given: str) -> str:
    """A model by its path; a folder of onnxruntime-genai stands for its decoder."""
    if not os.path.isdir(given) or os.path.isfile(os.path.join(given, "saved_model.pb")):
        return given
    from graphopt.io.genai import decoder_of

    try:
        return str(decoder_of(Path(given)))
    except ModelError as error:
        raise ModelError(f"{given}: {error}") from error.__cause__


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


def samples_options(function: F) -> F:
    """`--samples` and `--preprocess`: what a model is calibrated and judged on."""
    function = click.option(
        "--preprocess",
        help="For a folder of images: 'resize=256, crop=224, mean=..., std=..., layout=NCHW'.",
    )(function)
    return click.option(
        "--samples", help="Inputs: .npz, a folder of .npz, .npy or images, or file.py:function."
    )(function)


def evaluation_options(function: F) -> F:
    """`--eval`, how far it may fall, and the limits on size and latency."""
    for option in (
        accuracy_options,
        click.option(
            "--max-latency", metavar="5ms|0.5x", help="Slowest run, or its ratio to the source."
        ),
        click.option(
            "--max-size", metavar="10MB|0.3x", help="Largest file, or its ratio to the source."
        ),
    ):
        function = option(function)
    return function


def accuracy_options(function: F) -> F:
    """`--eval`, and how far it may fall."""
    function = click.option(
        "--max-drop", type=float, help="How far --eval may fall, in its own units."
    )(function)
    return click.option(
        "--eval",
        "evaluate",
        metavar="FILE.py:F|perplexity|greedy",
        help="f(predict) -> number, higher is better; of a language model, on --samples: minus "
        "its perplexity, or the share of tokens that it writes as the source does.",
    )(function)


def loss_options(function: F) -> F:
    """What may be lost where no `--eval` says it."""
    function = click.option(
        "--max-disagreement",
        type=float,
        help="Share of decisions on the samples that may change; 0.01 if no other limit is given.",
    )(function)
    return click.option(
        "--max-error", type=float, help="Worst output's relative L2 difference to the source."
    )(function)


def track_option(function: F) -> F:
    """`--track`: figures of a training or a search, step by step."""
    return click.option(
        "--track",
        metavar="tensorboard:DIR|mlflow:URI",
        help="Where the figures of training and search go, step by step.",
    )(function)


def profile_options(function: F) -> F:
    """`--target` and `--profile`: where a model's time goes."""
    function = click.option("--profile", is_flag=True, help="Time every node on the target.")(
        function
    )
    return click.option(
        "--target",
        default="cpu",
        show_default=True,
        help="Where --profile runs the model: a name, or FILE.py:BACKEND.",
        shell_complete=complete_targets,
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
