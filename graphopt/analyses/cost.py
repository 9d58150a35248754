"""Cost: parameters, bytes and multiply-accumulates per node, and the peak of live activations.

A multiply-accumulate (MAC) is one product added to a sum in a contraction: convolutions, matrix
products, recurrent cells, attention. Elementwise work, pooling and normalization count zero, as in
the figures that papers state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import at_sizes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.context import Context
from graphopt.graph.attributes import attribute
from graphopt.graph.traverse import all_graphs, all_nodes, passed_on, subgraphs

__all__ = ["Cost", "MacRule", "NodeCost", "constant_trips", "cost", "macs_of"]

Shape = tuple[int, ...]
#: MACs of a node, given the shapes of its inputs and outputs (None where absent or unknown).
MacRule = Callable[[ir.Node, list[Shape | None], list[Shape | None]], int | None]


class NodeCost(NamedTuple):
    """What one node costs.

    Attributes:
        macs: multiply-accumulates of one run; None if its shapes are unknown.
        params: elements of the constants it reads (a shared one counts at each reader).
        param_bytes: their bytes.
        output_bytes: bytes of its outputs.
    """

    macs: int | None
    params: int
    param_bytes: int
    output_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs at the bound shapes.

    Attributes:
        nodes: cost by node name, main graph and subgraphs.
        macs: sum over the nodes whose shapes are known (a Loop body counts once a known trip).
        params: elements of every initializer and constant tensor, shared ones once.
        param_bytes: their bytes.
        peak_activation_bytes: most bytes of values alive at once, nodes run in graph order.
        unknown: names of compute nodes whose MACs could not be told.
    """

    nodes: Mapping[str, NodeCost]
    macs: int
    params: int
    param_bytes: int
    peak_activation_bytes: int
    unknown: tuple[str, ...]


def cost(ctx: Context) -> Cost:
    """The cost of the context's model at its bound input shapes (`ctx.shapes`)."""
    nodes: dict[str, NodeCost] = {}
    unknown: list[str] = []
    sizes = _Sizes(at_sizes(ctx))
    total = _graph(ctx.model.graph, sizes, nodes, unknown)
    params = param_bytes = 0
    for tensor in _constants(ctx.model):
        params += tensor.size
        param_bytes += tensor.nbytes
    return Cost(
        MappingProxyType(nodes),
        total,
        params,
        param_bytes,
        _peak(ctx.model.graph, sizes),
        tuple(unknown),
    )


def macs_of(node: ir.Node, shapes: Shapes) -> int | None:
    """MACs of one node without its subgraphs; 0 for an operator that contracts nothing."""
    rule = RULES.get(node.op_type)
    if rule is None:
        return 0
    inputs = [shapes.static(v) if v is not None else None for v in node.inputs]
    outputs = [shapes.static(v) for v in node.outputs]
    try:
        return rule(node, inputs, outputs)
    except (TypeError, IndexError, KeyError, ValueError):
        return None  # a shape the rule needs is unknown


def _graph(
    graph: ir.Graph,
    sizes: _Sizes,
    nodes: dict[str, NodeCost],
    unknown: list[str],
) -> int:
    total = 0
    for node in graph:
        macs = macs_of(node, sizes.shapes)
        name = node.name or (node.outputs[0].name if node.outputs else "") or node.op_type
        if macs is None:
            unknown.append(name)
        inner = [_graph(sub, sizes, nodes, unknown) for sub in subgraphs(node)]
        if inner:
            macs = max(inner) if node.op_type == "If" else sum(inner) * constant_trips(node)
        tensors = [t for v in node.inputs if v is not None and (t := _tensor(v)) is not None]
        made = [sizes[v] for v in node.outputs]
        nodes[name] = NodeCost(
            macs,
            sum(t.size for t in tensors),
            sum(t.nbytes for t in tensors),
            None if None in made else sum(s for s in made if s is not None),
        )
        total += macs or 0
    return total


def constant_trips(node: ir.Node) -> int:
    """How often a body runs, where a constant says so; else 1.

    A limit says so only where nothing in the body ends the loop before: exporters of while loops
    give the largest integer there is, and a condition that is computed.
    """
    if node.op_type == "Loop" and node.inputs and node.inputs[0] is not None:
        tensor = _tensor(node.inputs[0])
        if tensor is not None and tensor.size == 1 and not _ends_by_itself(node):
            return max(1, min(int(tensor.numpy().item()), 1 << 31))
    return 1


def _ends_by_itself(loop: ir.Node) -> bool:
    body = loop.attributes["body"].as_graph()
    goes_on = passed_on(body.outputs[0])
    return goes_on.graph is body and _tensor(goes_on) is None and goes_on is not body.inputs[1]


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_initializer():
        return value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        return ir.convenience.get_const_tensor(value)
    return None


def _constants(model: ir.Model) -> list[ir.TensorProtocol]:
    found: dict[int, ir.TensorProtocol] = {}
    for graph in all_graphs(model.graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                found[id(value)] = value.const_value
    for node in all_nodes(model.graph):
        for held in node.attributes.values():
            if not held.is_ref() and held.type == ir.AttributeType.TENSOR:
                found[id(held)] = held.as_tensor()
    return list(found.values())


class _Sizes(dict[ir.Value, "int | None"]):
    """Bytes of values, each worked out when first asked for; None where the shape is unknown."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def __missing__(self, value: ir.Value) -> int | None:
        shape, dtype = self.shapes.static(value), self.shapes.dtype(value)
        if shape is None or dtype is None:
            self[value] = None
        else:
            bits = 8 * 16 if dtype == ir.DataType.STRING else dtype.bitwidth
            self[value] = (math.prod(shape) * bits + 7) // 8
        return self[value]


def _peak(graph: ir.Graph, sizes: _Sizes) -> int:
    """Most bytes alive at once: inputs from the start, outputs to the end, the rest between."""
    last: dict[ir.Value, int] = {}
    for k, node in enumerate(graph):
        for value in node.inputs:
            if value is not None:
                last[value] = k
    alive = peak = sum(sizes[v] or 0 for v in graph.inputs)
    outputs = set(graph.outputs)
    for k, node in enumerate(graph):
        alive += sum(sizes[v] or 0 for v in node.outputs)
        peak = max(peak, alive)
        for value in {v for v in (*node.inputs, *node.outputs) if v is not None}:
            if value not in outputs and not value.is_initializer() and last.get(value, k) == k:
                alive -= sizes[value] or 0
    return peak


# --- one rule per compute operator --------------------------------------------------------------


def _conv(weight: int) -> MacRule:
    """y[n, m, *o] = sum over c/g and the kernel: |y| * C/g * prod(k)."""

    def rule(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
        w = _known(i[weight])
        return math.prod(_known(o[0])) * math.prod(w[1:])

    return rule


def _conv_transpose(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
    """Each input element meets M/g * prod(k) weights."""
    return math.prod(_known(i[0])) * math.prod(_known(i[1])[1:])


def _matmul(left: int) -> MacRule:
    """|y| * K, K the last axis of the left operand (or the one before it, if transposed)."""

    def rule(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
        a = _known(i[left])
        k = a[-2] if attribute(node, "transA", 0) and len(a) > 1 else a[-1]
        return math.prod(_known(o[0])) * k

    return rule


def _recurrent(gates: int) -> MacRule:
    """T * N * directions * gates * H * (I + H)."""

    def rule(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
        x, w = _known(i[0]), _known(i[1])
        hidden = node.attributes["hidden_size"].as_int()
        return x[0] * x[1] * w[0] * gates * hidden * (x[2] + hidden)

    return rule


def _einsum(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
    """The product of the sizes of all indices."""
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    size: dict[str, int] = {}
    for term, shape in zip(terms, i, strict=True):
        dims = _known(shape)
        named = term.replace("...", "")
        extra = len(dims) - len(named)
        at = term.find("...")
        letters = [*term[: max(at, 0)], *(f".{k}" for k in range(extra)), *term[at + 3 :]]
        for letter, n in zip(letters if at >= 0 else list(term), dims, strict=True):
            size[letter] = max(size.get(letter, 1), n)
    return math.prod(size.values()) if len(terms) > 1 else 0


def _scaled_dot_product(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
    """Q K^T and P V: N * heads * S * T * (d + dv), on [N, S, heads * d] or [N, heads, S, d]."""
    q, k, v = _known(i[0]), _known(i[1]), _known(i[2])
    if len(q) == 4:
        return q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
    heads = int(attribute(node, "num_heads") or attribute(node, "q_num_heads"))
    kv = int(attribute(node, "kv_num_heads") or heads)
    return q[0] * heads * q[1] * k[1] * (q[2] // heads + v[2] // kv)


def _packed_attention(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
    """com.microsoft Attention: the packed projection, then scaled dot product."""
    if node.domain != "com.microsoft":
        return _scaled_dot_product(node, i, o)
    x, w, y = _known(i[0]), _known(i[1]), _known(o[0])
    projection = x[0] * x[1] * w[0] * w[1]
    qk = (w[1] - y[2]) // 2
    return projection + x[0] * x[1] * x[1] * (qk + y[2])


def _experts(weights: tuple[int, ...]) -> MacRule:
    """k experts of E for each token: tokens * k / E * (their matrices' elements)."""

    def rule(node: ir.Node, i: list[Shape | None], o: list[Shape | None]) -> int:
        tokens, experts = math.prod(_known(i[0])[:-1]), _known(i[weights[0]])[0]
        packed = 8 // int(attribute(node, "expert_weight_bits", 4)) if node.op_type == "QMoE" else 1
        held = sum(math.prod(_known(i[w])) for w in weights if w < len(i) and node.inputs[w])
        return tokens * int(attribute(node, "k", 1)) * held * packed // experts

    return rule


def _known(shape: Shape | None) -> Shape:
    if shape is None:
        raise ValueError("unknown shape")
    return shape


#: What each compute operator contracts; a name not here contracts nothing.
RULES: dict[str, MacRule] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "NhwcConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul(0),
    "MatMulInteger": _matmul(0),
    "Gemm": _matmul(0),
    "FusedMatMul": _matmul(0),
    "FusedGemm": _matmul(0),
    "TransposeMatMul": _matmul(0),
    "QLinearMatMul": _matmul(0),
    "QGemm": _matmul(0),
    "DynamicQuantizeMatMul": _matmul(0),
    "MatMulIntegerToFloat": _matmul(0),
    "MatMulNBits": _matmul(0),
    "MoE": _experts((2, 4, 6)),
    "QMoE": _experts((2, 5, 8)),
    "LSTM": _recurrent(4),
    "DynamicQuantizeLSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Einsum": _einsum,
    "Attention": _packed_attention,
    "QAttention": _packed_attention,
    "MultiHeadAttention": _scaled_dot_product,
    "GroupQueryAttention": _scaled_dot_product,
}
