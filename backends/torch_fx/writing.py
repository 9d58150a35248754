"""Writing back: trained parameters as new tensors of the model they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.parameters import Weight
from graphopt.backends.torch_fx.types import array_of

from graphopt.errors import ModelError
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import all_graphs
from graphopt.io.tensors import share_key

__all__ = ["write_back"]


def write_back(module: Any, model: ir.Model) -> int:
    """Put the module's parameters and buffers into `model`; returns how many changed.

    Each changed constant gets a new tensor of its old type; arrays are not touched in place, and
    constants that shared one tensor share the new one. Integer weights are rounded to the grid of
    their scale as it is now.

    Raises:
        ModelError: a parameter's initializer is not in `model`, or has another shape.
    """
    weights: dict[str, Weight] = module.meta["graphopt.parameters"]
    held = {**dict(module.named_parameters(remove_duplicate=False))}
    held |= dict(module.named_buffers(remove_duplicate=False))
    constants = _constants(model)
    made: dict[object, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}
    changed = 0
    for path, weight in weights.items():
        if path not in held:
            continue  # nothing reads it, and fx dropped it
        value = constants.get(weight.name)
        old = constant_value(value)
        if value is None or old is None:
            raise ModelError(f"the model has no initializer '{weight.name}' to write to")
        key = (share_key(old), old.dtype, str(old.shape), weight.grid)
        if key in made:
            _, new = made[key]
        else:
            array = _array(held, path, weight)
            if tuple(array.shape) != tuple(old.shape.numpy()):
                raise ModelError(
                    f"'{weight.name}' has shape {tuple(old.shape.numpy())} in the model and "
                    f"{tuple(array.shape)} in the module"
                )
            same = array.tobytes() == np.ascontiguousarray(old.numpy()).tobytes()
            new = old if same else ir.Tensor(array, dtype=old.dtype, name=weight.name)
            made[key] = (old, new)  # a tensor in memory is known by its id: it must live
        if new is not old:
            _put(value, new)
            changed += 1
    return changed


def _constants(model: ir.Model) -> dict[str, ir.Value]:
    found: dict[str, ir.Value] = {}
    for graph in all_graphs(model.graph):
        found |= graph.initializers
        for node in graph:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                found[node.outputs[0].name or ""] = node.outputs[0]
    return found


def _array(held: dict[str, Any], path: str, weight: Weight) -> np.ndarray[Any, Any]:
    tensor = held[path].detach()
    if weight.grid is not None:
        with torch.no_grad():
            tensor = weight.grid.round(tensor, held.__getitem__)
    return array_of(tensor, weight.dtype)


def _put(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    node = value.producer()
    if node is None:
        value.const_value = tensor
        return
    for name in [a for a in node.attributes if a.startswith("value")]:
        del node.attributes[name]
    node.attributes["value"] = ir.AttrTensor("value", tensor)
    value.const_value = None
