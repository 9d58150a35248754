"""The LiteRT target as a backend object: its data, writing `.tflite` files and running them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from graphopt.backends.devices.device import Device
from graphopt.backends.openvino_forms import in_its_forms

from graphopt.backend import Arrays
from graphopt.errors import ModelError
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "LiteRt", "LiteRtSession"]


@dataclasses.dataclass(frozen=True)
class LiteRt(Device):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "litert"
    suffix: ClassVar[str] = ".tflite"
    packages: ClassVar[tuple[str, ...]] = ("ai_edge_litert",)
    extra: ClassVar[str] = "litert"
    opset: ClassVar[int] = 22  # attention and rotary positions stay written out
    #: Activations int8 with any zero point, weights int8 without, a scale per channel.
    int8: ClassVar[Int8Scheme | None] = Int8Scheme(
        activation="int8",
        weight="int8",
        symmetric_activation=False,
        per_channel=True,
        operators=frozenset(
            {
                *("Add", "AveragePool", "Concat", "Conv", "DepthToSpace", "Flatten", "Gather"),
                *("Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Mul", "Reshape", "Resize"),
                *("Slice", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze"),
            }
        ),
    )

    def convert(self, model: ir.Model, target: Target, path: Path) -> None:
        """Write the flatbuffer."""
        from graphopt.backends.litert.tables import TABLE
        from graphopt.backends.litert.writer import Writer

        path.write_bytes(Writer(in_its_forms(model), TABLE).run())

    def open(self, path: Path, target: Target) -> LiteRtSession:
        """Open the file in the interpreter, with XNNPACK."""
        from ai_edge_litert.interpreter import Interpreter
        from graphopt.backends.litert.quiet import announced

        announced()
        try:
            raw = Interpreter(model_path=str(path), num_threads=max(target.threads, 1))
            raw.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise ModelError(f"{path.name} does not open for '{self.name}': {said}") from error
        return LiteRtSession(raw)


class LiteRtSession:
    """A model in LiteRT; `raw` is its interpreter."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        signature = raw.get_signature_list()["serving_default"]
        self.inputs: list[str] = list(signature["inputs"])
        self.outputs: list[str] = list(signature["outputs"])
        self._ins = _places(raw.get_input_details())
        self._outs = _places(raw.get_output_details())

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        for name, index in self._ins.items():
            self.raw.set_tensor(index, np.asarray(feeds[name]))
        self.raw.invoke()
        return {name: self.raw.get_tensor(index) for name, index in self._outs.items()}


def _places(details: list[Mapping[str, Any]]) -> dict[str, int]:
    return {d["name"]: d["index"] for d in details}


BACKEND = LiteRt()
