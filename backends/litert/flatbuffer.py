"""Flatbuffer: tensors, constants and operators of a `.tflite` file, and its bytes.

The schema comes with the runtime (`ai_edge_litert.schema_py_generated`): no TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from graphopt.errors import ModelError

__all__ = ["Grid", "Tensor", "TfLite"]

Array = np.ndarray[Any, Any]
SCHEMA = "ai_edge_litert.schema_py_generated"
VERSION = 3
#: Offsets in the file are 32 bits wide, signed.
LARGEST = (1 << 31) - (1 << 20)
TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "float64": "FLOAT64",
    "int64": "INT64",
    "int32": "INT32",
    "int16": "INT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """real = scale * (integer - zero); one scale, or one per index of `axis`."""

    scale: tuple[float, ...]
    zero: int = 0
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its number, shape, element type and, of integers, its grid."""

    index: int
    shape: tuple[int, ...]
    dtype: str
    grid: Grid | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@cache
def schema() -> Any:
    """The generated module: its classes ending in T are plain objects."""
    return import_module(SCHEMA)


def codes(name: str) -> dict[str, int]:
    """The numbers of an enumeration of the schema."""
    return {k: v for k, v in vars(getattr(schema(), name)).items() if k.isupper() or k[0].isupper()}


class TfLite:
    """A file being written: one graph, operators in the order they are added."""

    def __init__(self) -> None:
        s = schema()
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [s.BufferT()]
        self._operators: list[Any] = []
        self._codes: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._weight = 0

    def tensor(
        self, shape: Sequence[int], dtype: str, *, grid: Grid | None = None, name: str = ""
    ) -> Tensor:
        """A new tensor without a value."""
        return self._add(shape, dtype, grid, name, 0)

    def constant(self, array: Array, grid: Grid | None = None) -> Tensor:
        """A tensor that holds the array; equal ones are held once."""
        array = np.array(array, order="C")  # also of no axes
        key = (array.shape, array.dtype.str, grid, hash(array.tobytes()))
        if key not in self._constants:
            made = schema().BufferT()
            made.data = array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, np.uint8)
            self._weight += array.nbytes
            if self._weight > LARGEST:
                raise ModelError("a .tflite file holds 2 GB at most, and the weights are more")
            self._buffers.append(made)
            kind = str(array.dtype)
            last = len(self._buffers) - 1
            self._constants[key] = self._add(array.shape, kind, grid, "", last)
        return self._constants[key]

    def _add(
        self, shape: Sequence[int], dtype: str, grid: Grid | None, name: str, buffer: int
    ) -> Tensor:
        s = schema()
        if dtype not in TYPES:
            raise ModelError(f"LiteRT has no tensors of {dtype}")
        made = s.TensorT()
        made.shape = np.array(shape, np.int32)
        made.type = codes("TensorType")[TYPES[dtype]]
        made.buffer = buffer
        made.name = name or f"t{len(self._tensors)}"
        made.hasRank = True
        if grid is not None:
            made.quantization = s.QuantizationParametersT()
            made.quantization.scale = np.array(grid.scale, np.float32)
            made.quantization.zeroPoint = np.full(len(grid.scale), grid.zero, np.int64)
            made.quantization.quantizedDimension = grid.axis
        self._tensors.append(made)
        return Tensor(len(self._tensors) - 1, tuple(map(int, shape)), dtype, grid)

    def operator(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: str = "",
        given: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an operator; `options` names its table without "Options", `given` its fields."""
        s = schema()
        made = s.OperatorT()
        made.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        made.inputs = np.array([-1 if t is None else t.index for t in inputs], np.int32)
        made.outputs = np.array([t.index for t in outputs], np.int32)
        if options:
            made.builtinOptionsType = codes("BuiltinOptions")[f"{options}Options"]
            made.builtinOptions = getattr(s, f"{options}OptionsT")()
            for name, value in (given or {}).items():
                assert hasattr(made.builtinOptions, name), (options, name)
                setattr(made.builtinOptions, name, value)
        self._operators.append(made)

    def to_bytes(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> bytes:
        """The file; inputs and outputs have their names in a signature too."""
        import flatbuffers

        s = schema()
        for name, tensor in (*inputs.items(), *outputs.items()):
            self._tensors[tensor.index].name = name
        graph = s.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs = np.array([t.index for t in inputs.values()], np.int32)
        graph.outputs = np.array([t.index for t in outputs.values()], np.int32)
        model = s.ModelT()
        model.version, model.description = VERSION, "graphopt"
        model.subgraphs, model.buffers = [graph], self._buffers
        model.operatorCodes = [self._code(name) for name in self._codes]
        model.signatureDefs = [self._signature(inputs, outputs)]
        builder = flatbuffers.Builder(self._weight + (1 << 16))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _code(self, name: str) -> Any:
        made = schema().OperatorCodeT()
        made.builtinCode = codes("BuiltinOperator")[name]
        made.deprecatedBuiltinCode = min(made.builtinCode, 127)
        made.version = VERSIONS.get(name, 1)
        return made

    def _signature(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Any:
        s = schema()
        made = s.SignatureDefT()
        made.signatureKey, made.subgraphIndex = "serving_default", 0
        for field, tensors in (("inputs", inputs), ("outputs", outputs)):
            maps = []
            for name, tensor in tensors.items():
                one = s.TensorMapT()
                one.name, one.tensorIndex = name, tensor.index
                maps.append(one)
            setattr(made, field, maps)
        return made


#: Versions of operators whose newer forms are written (shapes kept by FULLY_CONNECTED, groups).
VERSIONS = {
    "ADD": 2,
    "BATCH_MATMUL": 4,
    "BROADCAST_TO": 3,
    "CONV_2D": 5,
    "DEPTHWISE_CONV_2D": 6,
    "DEQUANTIZE": 5,
    "FULLY_CONNECTED": 9,
    "GATHER": 5,
    "QUANTIZE": 2,
    "TRANSPOSE_CONV": 3,
}
