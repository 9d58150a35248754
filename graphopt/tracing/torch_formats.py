"""PyTorch formats as `graphopt.formats` asks for them: `.pt2` programs and `FILE.py:FUNCTION`."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt.backend import backend_of, find_target
from graphopt.errors import UsageError
from graphopt.io.writing import check_writable
from graphopt.tracing.opening import build_model, load_program

__all__ = ["FUNCTION", "PROGRAM", "FunctionFormat", "ProgramFormat"]


class ProgramFormat:
    """Programs of `torch.export`; see `graphopt.formats.Format`."""

    def load(self, path: str) -> ir.Model:
        """Trace the program in a .pt2 file."""
        return load_program(Path(path))

    def save(self, model: ir.Model, path: Path, *, external: bool | None = None) -> None:
        """Write the model as a program, through the torch backend; weights are always inside."""
        target = find_target("torch")
        check_writable(model, path)
        backend = backend_of(target)
        assert backend is not None  # it gave the target
        backend.lower(model, target, path)


class FunctionFormat:
    """`FILE.py:FUNCTION`, a function that returns a module with example inputs. It is run."""

    def load(self, path: str) -> ir.Model:
        """Trace what the function returns."""
        file, _, function = path.rpartition(":")
        return build_model(file, function)

    def save(self, model: ir.Model, path: Path, *, external: bool | None = None) -> None:
        """Refuse: models are not written as Python code."""
        raise UsageError(f"{path} names Python code: write the model as .onnx or .pt2")


PROGRAM, FUNCTION = ProgramFormat(), FunctionFormat()
