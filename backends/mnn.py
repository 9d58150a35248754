"""MNN: `.mnn` files by MNN's own converter, for phones.

The converter is called as a function, in a process of its own. The package's command `mnnconvert`
would install a logging client with pip and report the run to a server.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from graphopt.backends.devices.device import Device
from graphopt.backends.devices.forms import FOR_MNN, in_plain_forms
from graphopt.backends.devices.process import run_function
from graphopt.backends.devices.quantized import SYMMETRIC, Grid, QuantizedLayer, in_floats

from graphopt.backend import Arrays
from graphopt.errors import ModelError
from graphopt.formats import save
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "Mnn", "MnnSession"]


@dataclasses.dataclass(frozen=True)
class Mnn(Device):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "mnn"
    suffix: ClassVar[str] = ".mnn"
    packages: ClassVar[tuple[str, ...]] = ("MNN",)
    extra: ClassVar[str] = "mnn"
    apart: ClassVar[bool] = True
    #: Data int8 without zero point (with one, x86 computes something else), weights int8 a scale
    #: per channel, biases floats.
    int8: ClassVar[Int8Scheme | None] = SYMMETRIC

    def convert(self, model: ir.Model, target: Target, path: Path) -> None:
        """Write the file by MNN's converter."""
        source = path.with_suffix(".onnx")
        floats, layers = in_floats(model)
        save(in_plain_forms(floats, *FOR_MNN), source)
        given = ["-f", "ONNX", "--modelFile", source, "--MNNModel", path, "--bizCode", "graphopt"]
        given.append("--useOriginRNNImpl")  # its loops crash on bidirectional networks
        given += ["--useGeluApproximation", "0"]
        grids = path.with_suffix(".json")
        grids.write_text(json.dumps(_compression(layers)))
        if layers:
            given += ["--compressionParamsFile", grids]
        said = run_function(__name__, "convert", given, path.parent, "MNN")
        source.unlink()
        grids.unlink()
        if not path.exists():
            lines = [line for line in said.splitlines() if "Not Support" in line]
            said = " ".join(lines) or said.strip().splitlines()[-1]
            raise ModelError(f"MNN does not convert it: {said.partition(': ')[2] or said}")

    def open(self, path: Path, target: Target) -> MnnSession:
        """Open the file on the CPU."""
        from MNN import nn

        try:
            runtime = nn.create_runtime_manager(({"numThread": max(target.threads, 1)},))
            raw = nn.load_module_from_file(str(path), [], [], runtime_manager=runtime)
        except (SystemError, RuntimeError) as error:
            raise ModelError(f"{path.name} does not open for '{self.name}'") from error
        return MnnSession(raw)


class MnnSession:
    """A model in MNN; `raw` is its module."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        info = raw.get_info()
        self.inputs: list[str] = list(info["inputNames"])
        self.outputs: list[str] = list(info["outputNames"])

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        from MNN import expr

        given = [_variable(np.asarray(feeds[n])) for n in self.inputs]
        results = self.raw.onForward(given)
        made = {}
        for name, result in zip(self.outputs, results, strict=True):
            plain = expr.convert(result, expr.NCHW)
            made[name] = np.array(plain.read(), copy=True).reshape(plain.shape)
        return made


def _variable(array: np.ndarray[Any, Any]) -> Any:
    from MNN import expr

    kinds = {"f": (np.float32, expr.float), "i": (np.int32, expr.int), "b": (np.int32, expr.int)}
    kind, code = kinds[array.dtype.kind]
    return expr.const(np.ascontiguousarray(array, kind), list(array.shape), expr.NCHW, code)


def _compression(layers: Sequence[QuantizedLayer]) -> dict[str, Any]:
    """The grids as MNN's converter reads them (MNN_compression.proto), by the layers' names.

    A layer whose result stays float holds its weights as integers and computes in floats.
    """
    known: list[dict[str, Any]] = []
    for layer in layers:
        for name in layer.names:
            if layer.result is None:
                for made in (name, f"{name}__matmul_converted"):
                    known.append({"opName": made, "weight": [{"name": name, "bits": 8}]})
            else:
                weight = {"name": name, "scales": layer.scales.tolist(), "clampMin": -127}
                ends = {"input": [_grid(name, layer.data)], "output": [_grid(name, layer.result)]}
                known.append({"weight": [weight], **ends})
    return {"version": "3", "algo": [{"type": "QUANTIZE", "quantParams": {"layer": known}}]}


def _grid(name: str, grid: Grid) -> dict[str, Any]:
    least = {"clampMin": -127} if not grid.zero else {}
    return {"name": name, "scales": [grid.scale], "zeroPoint": grid.zero, **least}


def convert() -> None:
    """MNN's converter on the arguments of this process."""
    import _tools

    _tools.mnnconvert(["mnnconvert", *sys.argv[1:]])


BACKEND = Mnn()
