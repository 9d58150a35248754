"""Running a model as it is, on ONNX Runtime's CPU provider: what outputs are compared by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["open_session", "run", "run_each"]

Arrays = Mapping[str, np.ndarray[Any, Any]]


def open_session(path: Path, *, optimize: bool = False, threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` for the model file at `path`.

    Args:
        path: the .onnx file.
        optimize: let the runtime apply its own graph optimizations.
        threads: intra-op threads; 0 leaves the choice to the runtime.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_each(
    model: ir.Model, feeds: Iterable[Arrays], *, optimize: bool = False
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Outputs by name for each of `feeds`, one session for all of them."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder, "model.onnx")
        ir.save(model, path)
        session = open_session(path, optimize=optimize)
        names = [o.name for o in session.get_outputs()]
        for feed in feeds:
            yield dict(zip(names, session.run(names, dict(feed)), strict=True))


def run(
    model: ir.Model, feeds: Arrays, *, optimize: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name for one set of feeds (input name -> array)."""
    return next(iter(run_each(model, [feeds], optimize=optimize)))
