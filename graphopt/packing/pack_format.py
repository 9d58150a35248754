"""The .gopt format as `graphopt.formats` asks for it: packs wherever a model is read or written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from graphopt.entropy.container import unpack
from graphopt.errors import ModelError
from graphopt.io.reading import SOURCE, Source, read_model
from graphopt.io.writing import write_model
from graphopt.packing.lossless import pack_lossless

__all__ = ["FORMAT", "PackFormat"]


class PackFormat:
    """`.gopt`; see `graphopt.formats.Format`."""

    def load(self, path: str) -> ir.Model:
        """Unpack into a folder that goes again: the mapped weights stay."""
        if not Path(path).is_file():
            raise ModelError("no such file")
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            whole = Path(folder, "model.onnx")
            unpack(Path(path), whole)
            model = read_model(whole)
        status = os.stat(path)
        notes = model.graph.meta[SOURCE].notes
        files = frozenset({(status.st_dev, status.st_ino)})
        model.graph.meta[SOURCE] = Source(Path(path), files, (), notes)
        return model

    def save(self, model: ir.Model, path: Path, *, external: bool | None = None) -> None:
        """Pack the model as it would be written, exactly."""
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            whole = Path(folder, "model.onnx")
            write_model(model, whole, external=external)
            pack_lossless(whole, path)


FORMAT = PackFormat()
