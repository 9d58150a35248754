"""Prepared models: the graph as ONNX Runtime rewrites it when it opens it, kept for quick starts.

Opening skips the runtime's own optimizations: 0.06 to 0.6 of the time on ResNet-50, BERT and
smaller models. Such a file holds for one version of the runtime and one kind of processor;
anywhere else, or when the model beside it has changed, the model itself is opened instead.
"""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import Any

from graphopt.deploy.manifest import Manifest, read_manifest, write_manifest
from graphopt.deploy.processors import extensions
from graphopt.deploy.runtime import CPU, open_cpu, session_options
from graphopt.errors import InputError, UsageError

__all__ = ["prepare", "prepared_for"]

#: Weights above this go to a file of their own: protobuf ends at 2 GB.
LARGE = 1 << 30


def prepare(path: str | Path) -> Path:
    """Write `model.prepared.onnx` beside the model at `path`, for the runtime of this machine.

    The manifest names it, and `graphopt.session(path)` opens it in the model's place.

    Raises:
        InputError: no such file.
        UsageError: the model is not for the CPU provider, or another file has that name.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no model at {path}")
    manifest = read_manifest(path) or Manifest("cpu")
    if manifest.provider != CPU:
        raise UsageError(f"only models for the CPU can be prepared, not for '{manifest.target}'")
    file = path.with_suffix(".prepared.onnx")
    if file.exists() and manifest.prepared.get("file") != file.name:
        raise UsageError(f"{file} is not graphopt's: move it")
    partial = file.with_name(f".{file.stem}.{secrets.token_hex(4)}.onnx")
    config = dict(manifest.config)
    if path.stat().st_size > LARGE:
        weights = "session.optimized_model_external_initializers_file_name"
        config[weights] = f"{file.stem}.weights"
    options = session_options(config=config)
    options.optimized_model_filepath = str(partial)
    try:
        open_cpu(path, options)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    write_manifest(path, dataclasses.replace(manifest, prepared=_facts(path, file)))
    return file


def prepared_for(path: Path, manifest: Manifest) -> Path | None:
    """The prepared form of the model at `path` if it holds here and now, or None."""
    if not manifest.prepared or manifest.provider != CPU or manifest.free_dimensions:
        return None
    file = path.with_suffix(".prepared.onnx")
    return file if file.is_file() and manifest.prepared == _facts(path, file) else None


def _facts(path: Path, file: Path) -> dict[str, Any]:
    """What a prepared file depends on."""
    import onnxruntime as ort

    state = path.stat()
    return {
        "file": file.name,
        "runtime": ort.__version__,
        "processor": list(extensions()),
        "model": [state.st_size, int(state.st_mtime)],
    }
