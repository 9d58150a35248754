"""ORT format: `.ort` files for onnxruntime's mobile and web builds, with the configuration of the
operators that a reduced build needs beside them.

onnxruntime's own conversion writes both. Its graph optimizations are done ahead, but for those that
depend on the processor.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
from graphopt.backends.cpu import INTEGER
from graphopt.backends.devices.device import Device
from graphopt.backends.devices.process import run_module
from graphopt.backends.ort import accepted_opset

from graphopt.backend import Session
from graphopt.deploy.manifest import Manifest
from graphopt.deploy.runtime import BESIDE
from graphopt.deploy.sessions import open_manifest
from graphopt.formats import save
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "OrtFormat"]

CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"


@dataclasses.dataclass(frozen=True)
class OrtFormat(Device):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "ort"
    suffix: ClassVar[str] = ".ort"
    fixed: ClassVar[bool] = False
    #: Signed activations: the processors of phones multiply signed by signed.
    int8: ClassVar[Int8Scheme | None] = Int8Scheme(activation="int8", operators=INTEGER)

    def target(self, name: str) -> Target:
        """Its data; the opset is the newest that the installed onnxruntime opens."""
        return dataclasses.replace(super().target(name), opset=accepted_opset(), blocks=True)

    def convert(self, model: ir.Model, target: Target, path: Path) -> None:
        """Write `NAME.ort` and `NAME.required_operators.config`."""
        source = path.with_suffix(".onnx")
        save(model, source)
        arguments: tuple[object, ...] = (
            source,
            "--output_dir",
            path.parent,
            "--optimization_style",
            "Fixed",
        )
        arguments += ("--target_platform", "arm")  # signed activations stay signed
        run_module(CONVERTER, [*arguments, "--enable_type_reduction"], path.parent)
        for file in path.parent.glob(f"{source.name}*"):
            file.unlink()
        for file in path.parent.glob("*.config"):
            file.rename(path.with_suffix(".required_operators.config"))

    def how(self, model: ir.Model, target: Target) -> Manifest:
        """As any model on the CPU provider."""
        return Manifest(target.name)

    def open(self, path: Path, target: Target) -> Session:
        """Open the file in onnxruntime as it is installed; a reduced build opens it the same."""
        return self.session(path, target)

    def session(self, path: Path, target: Target, *, beside: bool = False) -> Session:
        """Open a file alone, or beside others that run in turn with it: then nothing spins."""
        config = BESIDE if beside else {}
        return open_manifest(path, Manifest(target.name, threads=target.threads, config=config))


BACKEND = OrtFormat()
