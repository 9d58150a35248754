"""PyTorch's own operators for Q/DQ (`quantized_decomposed`), as the compilers of devices read them.

    QuantizeLinear, DequantizeLinear   on integers, per tensor or per channel
    MatMul, Gemm                       aten::linear where the weight is constant integers

A product whose result stays float finds the range of its data on every run: that is the form that
device kernels with float results have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
import torch.nn.functional as F
from graphopt.backends.torch_fx.quantized import bounds
from graphopt.backends.torch_fx.reductions import gemm
from graphopt.backends.torch_fx.types import torch_dtype

from graphopt.errors import ModelError
from graphopt.graph.constants import constant_value

__all__ = ["TABLE"]

_OPS = torch.ops.quantized_decomposed
#: The least scale of a range that is found at run time.
_LEAST = torch.finfo(torch.float32).eps


def _per_tensor(op: Any) -> tuple[float, int]:
    """Scale and zero point of a grid for the whole tensor."""
    scale, zero = op.constant(1), op.constant(2)
    if scale is None or scale.size != 1 or (zero is None and op.given(2)):
        raise ModelError(f"the grid of '{op.node.name}' is not one constant for the whole tensor")
    return float(scale.reshape(())), 0 if zero is None else int(zero.reshape(()))


def _quantize(op: Any, x: Any, scale: Any, zero: Any = None) -> Any:
    """Q to integers."""
    dtype = op.dtype(2) if zero is not None else ir.DataType.UINT8
    return op.call(
        _OPS.quantize_per_tensor.default, x, *_per_tensor(op), *bounds(dtype), torch_dtype(dtype)
    )


def _dequantize(op: Any, q: Any, scale: Any, zero: Any = None) -> Any:
    """(q - z) s, per tensor or per channel; the grid of a weight is symmetric."""
    dtype = op.dtype(0)
    low, high = bounds(dtype)
    if constant_value(op.value(0)) is not None:
        low = -high
    if op.constant(1) is not None and op.constant(1).size == 1:
        return op.call(
            _OPS.dequantize_per_tensor.default, q, *_per_tensor(op), low, high, torch_dtype(dtype)
        )
    axis = op.attribute("axis", 1) % op.rank(0)
    zero = _zeros(op, op.dims(1)) if zero is None else zero
    return op.call(
        _OPS.dequantize_per_channel.default,
        *(q, scale, zero, axis, low, high, torch_dtype(dtype)),
    )


def _zeros(op: Any, shape: list[int]) -> Any:
    """Zero points, held: compilers take no others."""
    holder = torch.nn.Module()
    holder.register_buffer("zeros", torch.zeros(shape, dtype=torch.int64))
    return op.body.held(f"{op.body.parameters.adopt(holder)}.zeros")


def _matmul(op: Any, a: Any, b: Any) -> Any:
    rows = _rows(op, transposed=False)
    return torch.matmul(a, b) if rows is None else F.linear(_data(op, a), rows)


def _gemm(op: Any, a: Any, b: Any, c: Any = None) -> Any:
    rows = _rows(op, transposed=bool(op.attribute("transB", 0)))
    plain = (op.attribute("transA", 0), op.attribute("alpha", 1.0), op.attribute("beta", 1.0))
    if rows is None or plain != (0, 1.0, 1.0):
        return gemm(op, a, b, c)
    return F.linear(_data(op, a), rows, c)


def _rows(op: Any, transposed: bool) -> Any:
    """The weight as [out, in], if it is dequantized constant integers; None if not."""
    value = op.value(1)
    node = value.producer()
    if not transposed:
        if node is None or node.op_type != "Transpose":
            return None
        value = node.inputs[0]
        node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return op.body.value(value) if constant_value(node.inputs[0]) is not None else None


def _data(op: Any, a: Any) -> Any:
    """What the product reads: on its grid, or, where the result stays float, on one of each run."""
    if _rounded(op.node):
        return a
    back = op.value(0).producer()
    source = None if back is None or back.op_type != "DequantizeLinear" else back.inputs[0]
    there = None if source is None else source.producer()
    if there is None or there.op_type != "QuantizeLinear":
        return a
    assert there.inputs[0] is not None
    before = there.inputs[0].producer()
    if before is not None and before.op_type in ("Clip", "Relu"):
        source = before.inputs[0]
        before = None if source is None else source.producer()
    # a layer behind it is computed in integers only while its result is rounded
    x = a if before is not None and _layer(before) else op.body.value(there.inputs[0])
    low, high = bounds(ir.DataType.INT8)
    grid = op.call(_OPS.choose_qparams.tensor, x, low, high, _LEAST, torch.int8)
    rest = (grid[0], grid[1], low, high, torch.int8)
    q = op.call(_OPS.quantize_per_tensor.tensor, x, *rest)
    return op.call(_OPS.dequantize_per_tensor.tensor, q, *rest)


def _layer(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul")


def _rounded(node: ir.Node) -> bool:
    """Whether the result, behind an activation, goes to QuantizeLinear alone."""
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type in ("Relu", "Clip"):
        users = [use.node for use in users[0].outputs[0].uses()]
    return [u.op_type for u in users] == ["QuantizeLinear"]


TABLE: dict[str, Callable[..., Any]] = {
    "DequantizeLinear": _dequantize,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "QuantizeLinear": _quantize,
}
