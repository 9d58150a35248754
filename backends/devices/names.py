"""Names beside a file: what its inputs and outputs are called, their shapes and types.

NAME.io.json: {"inputs": {"x": {"shape": [1, 3], "dtype": "float32"}}, "outputs": ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import ModelError

__all__ = ["Names", "read_names", "write_names"]

#: By "inputs" and "outputs": shape and dtype by name, in order; further facts by name.
Names = dict[str, Any]


def write_names(model: ir.Model, path: Path, **more: int) -> None:
    """Write the names of a model at fixed shapes, and further facts, beside its file at `path`."""
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    facts = {"inputs": _facts(inputs), "outputs": _facts(model.graph.outputs), **more}
    path.with_suffix(".io.json").write_text(json.dumps(facts, indent=1) + "\n")


def _facts(values: Iterable[ir.Value]) -> dict[str | None, dict[str, Any]]:
    found: dict[str | None, dict[str, Any]] = {}
    for value in values:
        assert value.shape is not None
        kind = "float32" if value.dtype is None else str(value.dtype.numpy())
        found[value.name] = {"shape": [int(str(d)) for d in value.shape], "dtype": kind}
    return found


def read_names(path: Path, target: str) -> Names:
    """The names beside the file at `path`. Raises ModelError if they are not there."""
    try:
        found: Names = json.loads(path.with_suffix(".io.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} does not open for '{target}': {error}") from error
    return found
