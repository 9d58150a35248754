"""Constant values: the tensor behind a value, whether initializer or Constant node."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["constant_value"]


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
