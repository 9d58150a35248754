"""Shapes of ONNX Runtime's own operators, which ONNX's inference does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.analyses.shapes.facts import Fact, Shapes
from graphopt.analyses.shapes.operators.windows import windowed
from graphopt.analyses.shapes.rules import broadcast, matrix_product
from graphopt.analyses.shapes.symbolic import Dim, floordiv
from graphopt.graph.attributes import attribute

__all__ = ["OPERATORS"]

FLOAT = ir.DataType.FLOAT


def _like_first(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """The first output has type and shape of the first input; others stay unknown."""
    return [Fact(ins[0].dtype, ins[0].dims)]


def _skip_norm(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """(output, mean, inv_std, input + skip + bias): all but the statistics have the input's."""
    full = Fact(ins[0].dtype, ins[0].dims)
    statistics = None if ins[0].dims is None else (*ins[0].dims[:-1], 1)
    return [full, Fact(FLOAT, statistics), Fact(FLOAT, statistics), full]


def _layer_norm(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """(output, statistics of each row: mean and inverse deviation, or its inverse norm alone)."""
    dims = ins[0].dims
    axis = attribute(node, "axis", -1)
    rows = None
    if dims is not None:
        axis %= len(dims)
        rows = (*dims[:axis], *(1 for _ in dims[axis:]))
    statistics = Fact(ir.DataType(attribute(node, "stash_type", 1)), rows)
    return [Fact(ins[1].dtype, dims), statistics, statistics]


def _fused_matmul(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """op(A) @ op(B); transBatchA/B move the first batch axis behind the rows: left unknown."""
    a, b = ins[0].dims, ins[1].dims
    moved = attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0)
    if a is None or b is None or len(a) < 2 or len(b) < 2 or moved:
        return [Fact(ins[0].dtype)]
    rows = a[-1] if attribute(node, "transA", 0) else a[-2]
    columns = b[-2] if attribute(node, "transB", 0) else b[-1]
    batch = broadcast(shapes, a[:-2], b[:-2]) or ()
    return [Fact(ins[0].dtype, (*batch, rows, columns))]


def _float_product(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    return [Fact(ins[0].dtype, matrix_product(shapes, ins[0].dims, ins[1].dims))]


def _multi_head_attention(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """query (B, S, H*D) and value (B, L, H*Dv) give (B, S, H*Dv)."""
    query = ins[0].dims
    value = ins[2].dims if len(ins) > 2 else None
    if query is None or len(query) != 3:
        return [Fact(ins[0].dtype)]
    if value is not None and len(value) == 3:
        return [Fact(ins[0].dtype, (*query[:2], value[2]))]
    if value is not None and len(value) == 4:
        return [Fact(ins[0].dtype, (*query[:2], value[1] * value[3]))]
    return [Fact(ins[0].dtype)]


def _attention(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """Packed projection inside: (B, S, hidden of v)."""
    x, weight = ins[0].dims, ins[1].dims if len(ins) > 1 else None
    sizes = attribute(node, "qkv_hidden_sizes", None)
    hidden: Dim | None = sizes[2] if sizes else None
    if hidden is None and weight is not None and len(weight) == 2:
        hidden = floordiv(weight[1], 3)
    if x is None or len(x) != 3 or hidden is None:
        return [Fact(ins[0].dtype)]
    return [Fact(ins[0].dtype, (*x[:2], hidden))]


def _group_query_attention(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """Query (B, S, H*D) as it is; a packed one holds (H + 2 KV) heads of size D."""
    query = ins[0].dims
    if query is None or len(query) != 3:
        return [Fact(ins[0].dtype)]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return [Fact(ins[0].dtype, query)]
    heads, pairs = attribute(node, "num_heads", 0), attribute(node, "kv_num_heads", 0)
    size = floordiv(query[2], heads + 2 * pairs)
    return [Fact(ins[0].dtype, None if size is None else (*query[:2], size * heads))]


def _fused_gemm(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    a, b = ins[0].dims, ins[1].dims
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return [Fact(ins[0].dtype)]
    rows = a[1] if attribute(node, "transA", 0) else a[0]
    columns = b[0] if attribute(node, "transB", 0) else b[1]
    return [Fact(ins[0].dtype, (rows, columns))]


def _fused_conv(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """Conv with an activation (and a summand) has Conv's shape."""
    return _as_windowed("Conv", 3, ("activation", "activation_params"), node, ins, shapes)


def _integer_pool(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    if attribute(node, "channels_last", 0):
        return [Fact(ins[0].dtype)]
    in_floats = [Fact(FLOAT, ins[0].dims)]  # the standard's takes no integers
    found = _as_windowed("AveragePool", 1, ("channels_last",), node, in_floats, shapes)
    return [Fact(ins[0].dtype, one.dims) for one in found]


def _as_windowed(
    op_type: str,
    count: int,
    extra: Sequence[str],
    node: ir.Node,
    ins: Sequence[Fact],
    shapes: Shapes,
) -> list[Fact]:
    """What a standard operator makes of the first `count` inputs and all attributes but `extra`."""
    given = [a for a in node.attributes.values() if a.name not in extra]
    attributes = [ir.Attr(a.name, a.type, a.value) for a in given]
    plain = ir.Node("", op_type, list(node.inputs[:count]), attributes)
    plain.outputs[0].name = "y"
    found = windowed(plain, list(ins[:count]), shapes)
    plain.resize_inputs(0)
    return found or []


def _integer_matmul(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """DynamicQuantizeMatMul, MatMulIntegerToFloat: a float product."""
    return [Fact(FLOAT, matrix_product(shapes, ins[0].dims, ins[1].dims))]


def _quantize(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    zero = ins[2].dtype if len(ins) > 2 else ir.DataType.UINT8
    return [Fact(zero, ins[0].dims)]


def _dequantize(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    return [Fact(ins[1].dtype, ins[0].dims)]


def _gather_blocks(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """GatherBlockQuantized: rows of a table at `indices`, with the type of the scales."""
    table, indices = ins[0].dims, ins[1].dims
    if table is None or indices is None:
        return [Fact(ins[2].dtype)]
    axis = attribute(node, "gather_axis", 0) % len(table)
    bits = attribute(node, "bits", 4)
    if ins[0].dtype == ir.DataType.UINT8 and bits < 8:  # so many to a byte, along the last axis
        table = (*table[:-1], table[-1] * (8 // bits))
    return [Fact(ins[2].dtype, (*table[:axis], *indices, *table[axis + 1 :]))]


def _integer_sum(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """QLinearAdd, QLinearMul of (a, scale, zero, b, scale, zero, ...): shapes broadcast."""
    a, b = ins[0].dims, ins[3].dims
    dims = None if a is None or b is None else broadcast(shapes, a, b)
    return [Fact(ins[0].dtype, dims)]


def _integer_concat(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """QLinearConcat of (scale, zero, a, scale, zero, b, scale, zero, ...)."""
    parts = [fact.dims for fact in ins[2::3]]
    known = [dims for dims in parts if dims is not None]
    if len(known) < len(parts) or len({len(dims) for dims in known}) != 1 or not known[0]:
        return [Fact(ins[2].dtype)]
    axis = attribute(node, "axis", 0) % len(known[0])
    total: Dim = sum((dims[axis] for dims in known[1:]), known[0][axis])
    return [Fact(ins[2].dtype, (*known[0][:axis], total, *known[0][axis + 1 :]))]


def _integer_where(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """QLinearWhere of (condition, a, scale, zero, b, ...): shapes broadcast."""
    dims = ins[0].dims
    for other in (ins[1].dims, ins[4].dims):
        dims = None if dims is None or other is None else broadcast(shapes, dims, other)
    return [Fact(ins[1].dtype, dims)]


def _integer_gemm(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """QGemm of (a, scale, zero, b, ...): in floats where no zero point of the output is given."""
    dtype = ins[8].dtype if len(ins) > 8 and node.inputs[8] is not None else FLOAT
    (product,) = _fused_gemm(node, [ins[0], ins[3]], shapes)
    return [Fact(dtype, product.dims)]


def _embed_norm(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """Ids (B, S) and a table (V, H) give (B, S, H), the sequences' lengths (B,), (B, S, H)."""
    ids, table = ins[0].dims, ins[2].dims
    rows = None if ids is None or table is None else (*ids, table[-1])
    dtype = FLOAT if node.op_type.startswith("Q") else ins[2].dtype
    full = Fact(dtype, rows)
    return [full, Fact(ir.DataType.INT32, None if ids is None else ids[:1]), full]


def _halved(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """BiasSplitGelu: one half of the last axis gates the other."""
    dims = ins[0].dims
    half = floordiv(dims[-1], 2) if dims else None
    return [Fact(ins[0].dtype, None if dims is None or half is None else (*dims[:-1], half))]


def _integer_global_pool(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    dims = ins[0].dims
    if dims is None or len(dims) < 3:
        return [Fact(ins[0].dtype)]
    if attribute(node, "channels_last", 0):
        return [Fact(ins[0].dtype, (dims[0], *(1 for _ in dims[2:]), dims[-1]))]
    return [Fact(ins[0].dtype, (*dims[:2], *(1 for _ in dims[2:])))]


def _integer_attention(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """QAttention: input (B, S, I) and weight (I, 3 * H) give (B, S, H)."""
    x, weight = ins[0].dims, ins[1].dims
    hidden = None if weight is None or len(weight) != 2 else floordiv(weight[1], 3)
    if x is None or len(x) != 3 or hidden is None:
        return [Fact(FLOAT)]
    return [Fact(FLOAT, (*x[:2], hidden))]


def _integer_lstm(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """DynamicQuantizeLSTM of X (T, B, I), W (D, I, 4H): (T, D, B, H), (D, B, H), (D, B, H)."""
    x, weight = ins[0].dims, ins[1].dims
    hidden = attribute(node, "hidden_size", None)
    if x is None or weight is None or hidden is None:
        return [Fact(FLOAT)] * 3
    last = Fact(FLOAT, (weight[0], x[1], hidden))
    return [Fact(FLOAT, (x[0], weight[0], x[1], hidden)), last, last]


def _block_matmul(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """MatMulNBits: (..., K) times a packed (K, N) gives (..., N)."""
    dims, columns = ins[0].dims, attribute(node, "N", None)
    return [Fact(ins[0].dtype, None if dims is None or columns is None else (*dims[:-1], columns))]


_LIKE_FIRST = (
    "BiasGelu FastGelu QuickGelu Gelu BiasSoftmax GroupNorm RotaryEmbedding QLinearSigmoid "
    "QLinearLeakyRelu QLinearSoftmax BiasDropout Inverse MoE QMoE BiasAdd SkipGroupNorm "
    "LongformerAttention QOrderedGelu ScaledSiLU"
)
_MS = "com.microsoft"

OPERATORS: dict[tuple[str, str], Callable[[ir.Node, Sequence[Fact], Shapes], list[Fact] | None]] = {
    **{(_MS, name): _like_first for name in _LIKE_FIRST.split()},
    (_MS, "SkipLayerNormalization"): _skip_norm,
    (_MS, "SkipSimplifiedLayerNormalization"): _skip_norm,
    (_MS, "EmbedLayerNormalization"): _embed_norm,
    (_MS, "QEmbedLayerNormalization"): _embed_norm,
    (_MS, "BiasSplitGelu"): _halved,
    (_MS, "FusedMatMul"): _fused_matmul,
    (_MS, "TransposeMatMul"): _fused_matmul,
    (_MS, "GemmFastGelu"): _float_product,
    (_MS, "FusedGemm"): _fused_gemm,
    (_MS, "FusedConv"): _fused_conv,
    (_MS, "MultiHeadAttention"): _multi_head_attention,
    (_MS, "Attention"): _attention,
    (_MS, "GroupQueryAttention"): _group_query_attention,
    (_MS, "DynamicQuantizeMatMul"): _integer_matmul,
    (_MS, "MatMulIntegerToFloat"): _integer_matmul,
    (_MS, "GatherBlockQuantized"): _gather_blocks,
    (_MS, "QLinearAdd"): _integer_sum,
    (_MS, "QLinearMul"): _integer_sum,
    (_MS, "QLinearConcat"): _integer_concat,
    (_MS, "QLinearWhere"): _integer_where,
    (_MS, "QLinearAveragePool"): _integer_pool,
    (_MS, "QGemm"): _integer_gemm,
    (_MS, "QLinearGlobalAveragePool"): _integer_global_pool,
    (_MS, "QAttention"): _integer_attention,
    (_MS, "DynamicQuantizeLSTM"): _integer_lstm,
    (_MS, "MatMulNBits"): _block_matmul,
    (_MS, "MatMulBnb4"): _block_matmul,
    (_MS, "QuantizeLinear"): _quantize,
    (_MS, "DequantizeLinear"): _dequantize,
}
#: Registered by the runtime in the standard domain, the second before opset 17 too.
RUNTIME_OPERATORS = {"SimplifiedLayerNormalization": _layer_norm, "LayerNormalization": _layer_norm}
