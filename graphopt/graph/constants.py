"""Constant values: the tensor, array or weight behind a value.

    constant_value, constant_shape, number   held: an initializer or a Constant
    weight_of                                held, seen through Identity and Transpose
    is_constant, constant_array, array_of    held, or computed from what is

An initializer that is a graph input too is a default that callers may override: no constant. Only
`number` and the arrays load elements; a memory-mapped tensor stays mapped, and what Transpose,
Slice and Reshape make of it are views.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.evaluation import deterministic, evaluate

__all__ = [
    "QUANTIZATION",
    "Weight",
    "array_of",
    "constant_array",
    "constant_shape",
    "constant_value",
    "is_constant",
    "number",
    "shared",
    "weight_of",
]

Array = np.ndarray[Any, Any]

#: Exporters compute a weight by a few nodes; whoever asks for more asks about an activation.
MOST_NODES = 64
#: Quantized weights stay quantized: computing these ahead would undo it.
QUANTIZATION = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
#: The same numbers, in another order, shape or type.
VIEWS = frozenset(("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))


def constant_value(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor a value always holds: an initializer that is no graph input, or a Constant."""
    if value is None:
        return None
    node = value.producer()
    if node is not None:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            return None
        tensor = node.attributes.get("value")
        if tensor is not None and tensor.type is ir.AttributeType.TENSOR:
            return tensor.value  # type: ignore[no-any-return]
        return ir.convenience.get_const_tensor(value)
    if value.is_initializer() and not value.is_graph_input():
        return value.const_value
    return None


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a held constant, without loading it; None if `value` is none."""
    tensor = constant_value(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def number(value: ir.Value | None) -> float | None:
    """The value of a held constant of one element, or None."""
    tensor = constant_value(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().astype(np.float64).reshape(()))


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is held or computed from what is held, found without loading anything.

    Not through quantization, random operators, foreign domains, or more than 64 nodes.
    """
    return value is not None and _visit(value, {}, set())


def constant_array(value: ir.Value | None) -> Array | None:
    """The elements of a value that `is_constant`; None if it is not, or nothing can compute it."""
    held = constant_value(value)
    if held is not None or value is None:
        return None if held is None else held.numpy()
    nodes: dict[ir.Node, None] = {}
    if not _visit(value, nodes, set()):
        return None
    arrays: dict[ir.Value | None, Array | None] = {None: None}
    for node in nodes:
        for v in node.inputs:
            if v not in arrays:
                tensor = constant_value(v)
                assert tensor is not None
                arrays[v] = tensor.numpy()
        opsets = {} if node.graph is None else dict(node.graph.opset_imports)
        made = evaluate(node, [arrays[v] for v in node.inputs], opsets)
        if made is None:
            return None
        arrays.update(zip([o for o in node.outputs if o.name], made, strict=True))
    return arrays[value]


def array_of(value: ir.Value | None) -> Array:
    """The elements of a value that is known to be constant."""
    array = constant_array(value)
    assert array is not None
    return array


def _visit(value: ir.Value | None, done: dict[ir.Node, None], seen: set[ir.Node]) -> bool:
    """Add the nodes that compute `value`, in order, to `done`; False if it is no constant."""
    if value is None or constant_value(value) is not None:
        return True
    node = value.producer()
    if node is None or node in done:
        return node is not None
    seen.add(node)
    if len(seen) > MOST_NODES or node.op_type in QUANTIZATION or not deterministic(node):
        return False
    if not node.inputs or not all(_visit(v, done, seen) for v in node.inputs):
        return False
    done[node] = None
    return True


@dataclasses.dataclass(frozen=True)
class Weight:
    """A held constant, transposed: `array = transpose(root, perm)`.

    Attributes:
        root: the initializer (or output of a Constant) that holds the numbers.
        tensor: its tensor.
        perm: axes of `root` in the order they are seen.
    """

    root: ir.Value
    tensor: ir.TensorProtocol
    perm: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape the operator sees."""
        shape = self.tensor.shape.numpy()
        return tuple(shape[i] for i in self.perm)

    @property
    def key(self) -> tuple[ir.Value, tuple[int, ...]]:
        """Equal for two uses of the same numbers in the same order."""
        return self.root, self.perm

    def array(self) -> Array:
        """The numbers the operator sees (a view; do not write)."""
        return self.tensor.numpy().transpose(self.perm)


def weight_of(value: ir.Value | None) -> Weight | None:
    """The held constant behind `value`, or None if it is computed from something else.

    Exporters leave `MatMul(x, Transpose(W))` and `Identity(W)` for weights used twice.
    """
    perms: list[tuple[int, ...]] = []
    while value is not None:
        tensor = constant_value(value)
        if tensor is not None:
            seen = tuple(range(len(tensor.shape)))
            for perm in reversed(perms):
                seen = tuple(seen[i] for i in perm) if perm else seen[::-1]
            return Weight(value, tensor, seen)
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Transpose":
            perms.append(tuple(node.attributes.get_ints("perm", ())))
        elif node.op_type != "Identity":
            return None
        value = node.inputs[0]
    return None


def shared(value: ir.Value) -> bool:
    """Whether anyone else reads these numbers, in whatever order, shape or type.

    A changed copy would untie what is tied, or store it twice.
    """
    while True:
        if len(value.uses()) > 1 or value.is_graph_output():
            return True
        node = value.producer()
        source = node.inputs[0] if node is not None and node.op_type in VIEWS else None
        if source is None:
            return False
        value = source
