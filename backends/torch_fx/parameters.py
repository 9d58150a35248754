"""Parameters: one per initializer, under its name.

A dot in a name is a submodule, as in the torch module that a model was exported from. Float weights
are parameters; integers, shape data, statistics of BatchNormalization and scalars that belong to a
formula (an epsilon, a square root of the head size) are buffers. Integer weights behind a constant
scale are float parameters in real units, rounded to their grid on every run (see `quantized`).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.grids import Grid, grid_at
from graphopt.backends.torch_fx.keys import key_of
from graphopt.backends.torch_fx.types import tensor_of

from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import all_graphs
from graphopt.io.tensors import share_key

__all__ = ["Parameters", "Weight"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_INTEGERS = (
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT16,
    ir.DataType.UINT16,
    ir.DataType.INT32,
    ir.DataType.INT4,
    ir.DataType.UINT4,
)

#: Inputs that shape a formula and are no weights, by operator.
_STRUCTURAL = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "Pad": (2,),
    "Pow": (1,),
    "OneHot": (2,),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "RotaryEmbedding": (1, 2),
    "com.microsoft:RotaryEmbedding": (2, 3),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), (0, 1)),
    **dict.fromkeys(("Loop", "If", "Scan", "Dropout", "Upsample"), tuple(range(16))),
}

#: Operators whose inputs are weights even with a single element.
_WEIGHTS = re.compile(
    r"(com\.microsoft:)?(Conv|ConvTranspose|Gemm|MatMul|PRelu|.*Normalization|LSTM|GRU|RNN|"
    r"QuantizeLinear|DequantizeLinear|Fused.*|QLinear.*|Q[A-Z].*|DynamicQuantize.*|MatMulInteger.*)"
)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter or buffer.

    Attributes:
        path: where it is in the module.
        name: of the initializer (or of the output of the Constant).
        dtype: of the initializer.
        grid: set for integer weights that are held as floats.
    """

    path: str
    name: str
    dtype: ir.DataType
    grid: Grid | None = None


class Parameters:
    """Registers a model's constants in `root` as they are asked for.

    Without `grids` integer weights stay integers.
    """

    def __init__(self, model: ir.Model, root: Any, *, grids: bool = True) -> None:
        self.root = root
        self._grids = grids
        self.weights: dict[str, Weight] = {}
        self._by_value: dict[ir.Value, Weight] = {}
        self._tied: dict[object, tuple[ir.TensorProtocol, Any]] = {}
        self._taken: set[str] = set()
        for graph in all_graphs(model.graph):
            for value in graph.initializers.values():
                if constant_value(value) is not None:
                    self.of(value)

    def anchor(self) -> str | None:
        """The path of some parameter or buffer."""
        return next(iter(self.weights), None)

    def of(self, value: ir.Value) -> Weight | None:
        """Where the constant `value` is held; None if it is no constant."""
        if value in self._by_value:
            return self._by_value[value]
        tensor = constant_value(value)
        if tensor is None or tensor.dtype is ir.DataType.STRING:
            return None
        path = self._path(value.name or "constant")
        grid = self._grid(value) if self._grids and tensor.dtype in _INTEGERS else None
        weight = Weight(path, value.name or "", tensor.dtype, grid)
        self._by_value[value] = weight
        self.weights[path] = weight
        self._register(path, value, tensor, grid)
        return weight

    def _register(
        self, path: str, value: ir.Value, tensor: ir.TensorProtocol, grid: Grid | None
    ) -> None:
        *folders, leaf = path.split(".")
        module = self.root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, torch.nn.Module())
            module = module._modules[folder]
        key = (share_key(tensor), tensor.dtype, str(tensor.shape), grid)
        _, held = self._tied.get(key, (None, None))
        if held is None:
            held = tensor_of(tensor)
            if grid is not None:
                held = grid.real(held, lambda p: self.get(p).detach())
            if grid is not None or (tensor.dtype in _FLOATS and _trained(value, tensor)):
                held = torch.nn.Parameter(held)
            self._tied[key] = (tensor, held)  # a tensor in memory is known by its id: it must live
        if isinstance(held, torch.nn.Parameter):
            module.register_parameter(leaf, held)
        else:
            module.register_buffer(leaf, held)

    def _grid(self, value: ir.Value) -> Grid | None:
        """The grid that every use of an integer constant agrees on."""
        grids = {grid_at(use.node, use.idx, self._path_of) for use in value.uses()}
        return grids.pop() if len(grids) == 1 else None

    def _path_of(self, value: ir.Value) -> str | None:
        weight = self.of(value)
        return None if weight is None else weight.path

    def get(self, path: str) -> Any:
        """The parameter or buffer at `path`."""
        *folders, leaf = path.split(".")
        module = self.root
        for folder in folders:
            module = module._modules[folder]
        return getattr(module, leaf)

    def _path(self, name: str) -> str:
        """A path for `name` that no other parameter, submodule or attribute has.

        PyTorch's ONNX exporter calls constants of its own val_0, val_1, ... and does not look
        whether that is the name of a parameter.
        """
        name = f"{name}_" if re.fullmatch(r"val_\d+", name) else name
        parts = [p if p and not hasattr(torch.nn.Module, p) else f"{p}_" for p in name.split(".")]
        parts = [f"{p}_" if p in ("graph", "code", "meta", "training") else p for p in parts]
        path = ".".join(parts)
        prefixes = {".".join(parts[:k]) for k in range(1, len(parts))}
        if prefixes & set(self.weights) or path in self._taken:
            path = path.replace(".", "_")
        while path in self._taken or path in self.weights:
            path += "_"
        self._taken |= {path, *prefixes}
        return path

    def adopt(self, module: Any) -> str:
        """The path of a new submodule."""
        path = self._path("subgraph")
        self.root.add_module(path, module)
        return path


def _trained(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Whether a float constant is a weight, by where it goes."""
    uses = [
        (key_of(u.node), u.idx)
        for u in value.uses()
        if u.idx not in _STRUCTURAL.get(key_of(u.node), ())
    ]
    if not uses:
        return False
    if tensor.size <= 1:
        return any(_WEIGHTS.fullmatch(name) for name, _ in uses)
    array = tensor.numpy()
    # -inf, or the lowest float, is a mask
    return bool(np.all(np.abs(array.astype(np.float32)) < 1e9))
