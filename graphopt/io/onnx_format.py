"""The ONNX file format as `graphopt.formats` asks for it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt.io.reading import read_model
from graphopt.io.writing import write_model

__all__ = ["FORMAT", "OnnxFormat"]


class OnnxFormat:
    """`.onnx`, weights inside or beside; see `graphopt.formats.Format`."""

    def load(self, path: str) -> ir.Model:
        """Read a file; its weights stay there, mapped."""
        return read_model(Path(path))

    def save(self, model: ir.Model, path: Path, *, external: bool | None = None) -> None:
        """Write a file, and `NAME.onnx.data` beside it where weights go there."""
        write_model(model, path, external=external)


FORMAT = OnnxFormat()
