"""Operators on integers: dequantize, compute in float, quantize. Gradients pass as in `quantized`.

Sums of products of 8-bit integers are exact in float32 up to 2^24, so results are those of integer
arithmetic but for the last rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.attention import packed_attention
from graphopt.backends.torch_fx.convolution import convolve
from graphopt.backends.torch_fx.pooling import average_pool
from graphopt.backends.torch_fx.quantized import (
    Carried,
    carried,
    floats,
    on_grid,
    round_through,
    spread,
)

from graphopt.errors import ModelError

__all__ = ["TABLE", "dynamic_grid"]


def real(x: Any, scale: Any, zero: Any, axis: int | None = None, rank: int = 0) -> Any:
    """(q - z) s"""
    return shifted(x, zero, axis, rank) * (scale if axis is None else spread(scale, axis, rank))


def shifted(x: Any, zero: Any, axis: int | None = None, rank: int = 0) -> Any:
    """q - z"""
    q = floats(x)
    if zero is None:
        return q
    z = zero.to(torch.float32)
    return q - (z if axis is None else spread(z, axis, rank))


def dtype_of(op: Any, k: int) -> ir.DataType:
    """The integer type of input `k`."""
    dtype: ir.DataType = op.dtype(k)
    return dtype


def along(op: Any, k: int, axis: int, rank: int) -> int | None:
    """`axis` if input `k` holds one scale for each of its elements, None if it is one scale."""
    return None if op.rank(k) == 0 or op.dims(k) == [1] else axis % rank


def _rounded(op: Any, y: Any, scale: Any, zero: Any, at: int) -> Carried:
    """y on the grid of inputs `at` and `at` + 1."""
    dtype = dtype_of(op, at) if zero is not None else ir.DataType.UINT8
    return Carried(on_grid(y, scale, zero, dtype), dtype)


@carried
def _conv(
    op: Any, x: Any, xs: Any, xz: Any, w: Any, ws: Any, wz: Any, ys: Any, yz: Any, b: Any = None
) -> Any:
    rank = op.rank(3)
    axis = along(op, 4, 0, rank)
    weights = shifted(w, wz, None if along(op, 5, 0, rank) is None else 0, rank)
    sums = convolve(op, shifted(x, xz), weights, None, weight=3)
    factor = xs * ws if axis is None else spread(xs * ws, 1, rank)
    if b is not None:
        sums = sums + spread(b.to(torch.float32), 1, rank)
    return _rounded(op, sums * factor, ys, yz, 7)


@carried
def _conv_integer(op: Any, x: Any, w: Any, xz: Any = None, wz: Any = None) -> Any:
    rank = op.rank(1)
    weights = shifted(w, wz, along(op, 3, 0, rank) if wz is not None else None, rank)
    sums = convolve(op, shifted(x, xz), weights)
    return Carried(sums, ir.DataType.INT32)


@carried
def _matmul(op: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any) -> Any:
    left, right = _rows(op, a, sa, za, 1, 0), _columns(op, b, sb, zb, 4, 3)
    return _rounded(op, torch.matmul(left, right), sy, zy, 7)


def _rows(op: Any, a: Any, s: Any, z: Any, at: int, k: int) -> Any:
    rank = op.rank(k)
    return real(a, s, z, along(op, at, -2, rank), rank)


def _columns(op: Any, b: Any, s: Any, z: Any, at: int, k: int) -> Any:
    rank = op.rank(k)
    if op.rank(at) > 1:
        return (floats(b) - z.to(torch.float32)) * s
    return real(b, s, z, along(op, at, -1, rank), rank)


@carried
def _matmul_integer(op: Any, a: Any, b: Any, za: Any = None, zb: Any = None) -> Any:
    left = shifted(a, za, along(op, 2, -2, op.rank(0)) if za is not None else None, op.rank(0))
    right = shifted(b, zb, along(op, 3, -1, op.rank(1)) if zb is not None else None, op.rank(1))
    return Carried(torch.matmul(left, right), ir.DataType.INT32)


@carried
def _to_float(
    op: Any,
    a: Any,
    b: Any,
    sa: Any,
    sb: Any,
    za: Any = None,
    zb: Any = None,
    bias: Any = None,
) -> Any:
    rank = op.rank(1)
    axis = along(op, 3, -1, rank)
    right = shifted(b, zb, None if zb is None else along(op, 5, -1, rank), rank)
    sums = torch.matmul(shifted(a, za), right)
    y = sums * (sa * (sb if axis is None else sb.reshape(-1)))
    return y if bias is None else y + bias


def dynamic_grid(x: Any) -> tuple[Any, Any, Any]:
    """x as uint8 on the grid of its own range (which includes 0): integers, scale, zero point."""
    low = torch.clamp(torch.amin(x), max=0.0)
    high = torch.clamp(torch.amax(x), min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0.0, 255.0)
    q = round_through(torch.clamp(x / scale, -zero.detach(), 255.0 - zero.detach()))
    return q + zero.detach(), scale, zero.detach()


def _dynamic(op: Any, x: Any) -> Any:
    q, scale, zero = dynamic_grid(x)
    return Carried(q, ir.DataType.UINT8), scale, zero.to(torch.uint8)


@carried
def _dynamic_matmul(op: Any, a: Any, b: Any, sb: Any, zb: Any = None, bias: Any = None) -> Any:
    q, scale, zero = dynamic_grid(a)
    rank = op.rank(1)
    right = shifted(b, zb, None if zb is None else along(op, 3, -1, rank), rank)
    y = torch.matmul(q - zero, right) * (scale * sb)
    return y if bias is None else y + bias


@carried
def _gemm(
    op: Any,
    a: Any,
    sa: Any,
    za: Any,
    b: Any,
    sb: Any,
    zb: Any,
    c: Any = None,
    sy: Any = None,
    zy: Any = None,
) -> Any:
    left = shifted(a, za)
    left = left.t() if op.attribute("transA", 0) else left
    flipped = bool(op.attribute("transB", 0))
    axis = along(op, 4, 0 if flipped else 1, 2)
    right = shifted(b, zb, None if along(op, 5, 0, 2) is None else (0 if flipped else 1), 2)
    sums = torch.matmul(left, right.t() if flipped else right)
    if c is not None:
        sums = sums + c.to(torch.float32)
    y = sums * (sa * sb if axis is None else (sa * sb).reshape(1, -1))
    alpha = op.attribute("alpha", 1.0)
    y = y if alpha == 1 else y * alpha
    return y if sy is None else _rounded(op, y, sy, zy, 8)


def _both(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @carried
    def lower(
        op: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any = None
    ) -> Any:
        return _rounded(op, function(real(a, sa, za), real(b, sb, zb)), sy, zy, 7)

    return lower


def _one(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @carried
    def lower(op: Any, x: Any, sx: Any, zx: Any, sy: Any, zy: Any = None) -> Any:
        return _rounded(op, function(op, real(x, sx, zx)), sy, zy, 4)

    return lower


@carried
def _concat(op: Any, sy: Any, zy: Any, *given: Any) -> Any:
    parts = [real(*given[k : k + 3]) for k in range(0, len(given), 3)]
    return _rounded(op, torch.cat(parts, op.attribute("axis")), sy, zy, 1)


@carried
def _where(
    op: Any, c: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any
) -> Any:
    return _rounded(op, torch.where(c, real(a, sa, za), real(b, sb, zb)), sy, zy, 8)


def _spatial_mean(op: Any, x: Any) -> Any:
    rank = op.rank()
    axes = list(range(1, rank - 1)) if op.attribute("channels_last", 0) else list(range(2, rank))
    return torch.mean(x, axes, True)


def _average(op: Any, x: Any) -> Any:
    if not op.attribute("channels_last", 0):
        return average_pool(op, x)
    return average_pool(op, x.movedim(-1, 1)).movedim(1, -1)


@carried
def _attention(
    op: Any,
    x: Any,
    w: Any,
    bias: Any,
    sx: Any,
    sw: Any,
    mask: Any = None,
    zx: Any = None,
    zw: Any = None,
    past: Any = None,
) -> Any:
    total = (op.dims(1) or [None, None])[1]
    assert total is not None
    axis = along(op, 7, 1, 2) if zw is not None else None
    qkv = torch.matmul(shifted(x, zx), shifted(w, zw, axis, 2))
    qkv = qkv * (sx * sw) + bias
    return packed_attention(op, qkv, mask, past, None, [total // 3] * 3, 5)


@carried
def _gather_blocks(op: Any, x: Any, indices: Any, scale: Any, zero: Any = None) -> Any:
    """Rows of a table whose scales lie block by block along the other axis."""
    if op.attribute("bits", 4) != 8:
        raise ModelError(f"'{op.node.name}': packed elements below 8 bits are not lowered")
    axis, at = op.attribute("quantize_axis", 1), op.attribute("gather_axis", 0)
    block = op.attribute("block_size", 128)
    q = floats(x)
    if zero is not None:
        q = q - torch.repeat_interleave(zero.to(torch.float32), block, axis)
    elif op.dtype(0) is ir.DataType.UINT8:
        q = q - 128.0
    table = q * torch.repeat_interleave(scale, block, axis)
    return table[(*[slice(None)] * at, indices.to(torch.int64))]


TABLE: dict[str, Callable[..., Any]] = {
    "ConvInteger": _conv_integer,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "com.microsoft:DynamicQuantizeMatMul": _dynamic_matmul,
    "com.microsoft:GatherBlockQuantized": _gather_blocks,
    "com.microsoft:MatMulIntegerToFloat": _to_float,
    "com.microsoft:QAttention": _attention,
    "com.microsoft:QGemm": _gemm,
    "com.microsoft:QLinearAdd": _both(lambda a, b: a + b),
    "com.microsoft:QLinearAveragePool": _one(_average),
    "com.microsoft:QLinearConcat": _concat,
    "com.microsoft:QLinearGlobalAveragePool": _one(_spatial_mean),
    "com.microsoft:QLinearLeakyRelu": _one(
        lambda op, x: torch.nn.functional.leaky_relu(x, op.attribute("alpha", 0.01))
    ),
    "com.microsoft:QLinearMul": _both(lambda a, b: a * b),
    "com.microsoft:QLinearSigmoid": _one(lambda op, x: torch.sigmoid(x)),
    "com.microsoft:QLinearSoftmax": _one(lambda op, x: torch.softmax(x, op.attribute("axis", -1))),
    "com.microsoft:QLinearWhere": _where,
}
