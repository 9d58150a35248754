"""Configuration: `graphopt.toml` or `pyproject.toml` in the working directory, or `--config FILE`.

In a `pyproject.toml` it is the table `[tool.graphopt]`.

It holds what `graphopt optimize` takes, by option name: `passes = "prune(ratio=0.3), fuse"`,
`target = "cpu"`, `max_drop = 0.5`, `[shape] x = [1, 3, 224, 224]`. The command line wins. A file
beside the model is never read, and one that nobody named may name neither code nor a server: the
working folder may be a downloaded one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from graphopt.errors import UsageError, nearest
from graphopt.user_code import names_code

__all__ = ["DEFAULTS", "read_config", "with_config"]

PROJECT = "pyproject.toml"
#: Read where nothing is named: the first that is there.
DEFAULTS = ("graphopt.toml", PROJECT)


def read_config(path: str | None, known: set[str]) -> dict[str, Any]:
    """Options by name. Raises UsageError for an unreadable file, an unknown option, or code.

    Args:
        path: what `--config` named; None reads one of `DEFAULTS` here if there is one.
        known: option names, with underscores.
    """
    file = Path(path or next((name for name in DEFAULTS if Path(name).is_file()), ""))
    if path is None and not file.is_file():
        return {}
    try:
        data = tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error
    if file.name == PROJECT:
        data = data.get("tool", {}).get("graphopt", {})
    options = {k.replace("-", "_"): v for k, v in data.items()}
    for key in options:
        if key not in known:
            raise UsageError(f"{file}: no option '{key}'{nearest(key, known)}")
        value = str(options[key])
        if path is None and key == "track":
            raise UsageError(
                f"{file}: track names where figures are sent, which nothing does that you did not "
                f"name: add --config {file}"
            )
        if path is None and (key == "eval" or names_code(value)):
            raise UsageError(
                f"{file}: {key} names code ({value}), which runs only if you name the file: add "
                f"--config {file}"
            )
    return options


def with_config(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The command line over the configuration file over the defaults."""
    names = {"evaluate": "eval", "shapes": "shape", "report_file": "report", "as_json": "json"}
    known = {names.get(k, k) for k in given} - {"model", "config", "debug"}
    config = read_config(given["config"], known)
    merged = dict(given)
    for key in given:
        typed = ctx.get_parameter_source(key) == ParameterSource.COMMANDLINE
        name = names.get(key, key)
        if name in config and not typed:
            merged[key] = _checked(ctx, key, config[name])
    return merged


def _checked(ctx: click.Context, key: str, value: Any) -> Any:
    if key == "shapes":
        if not isinstance(value, dict):
            raise UsageError("the configuration's shape must be a table: [shape] x = [1, 3]")
        return tuple(f"{k}={'x'.join(map(str, v))}" for k, v in value.items())
    parameter = next(p for p in ctx.command.params if p.name == key)
    return parameter.type_cast_value(ctx, value)
