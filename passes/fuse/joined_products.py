"""QKV and gate/up fusion: products that share an operand become one, where that is faster."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.layout.slices import place_after
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Context
from graphopt.analyses.linear import Linear, bias_add, linear_of
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import array_of, constant_shape
from graphopt.graph.traverse import all_nodes

__all__ = ["join_products"]


class _Product(NamedTuple):
    """x W + b, the node that adds (the same in a Gemm), and b or None."""

    op: Linear
    last: ir.Node
    bias: ir.Value | None


def join_products(model: ir.Model, ctx: Context) -> int:
    """x A + a, x B + b, ... -> Split(x [A B ...] + [a b ...])

    for constant matrices that nothing else reads, as in Q, K and V or gate and up: MatMul, with
    the Add of a bias after it where all have one, or Gemm.
    """
    if not ctx.target.joins_products or model.graph.opset_imports.get("", 1) < 13:
        return 0
    groups: dict[Any, list[_Product]] = defaultdict(list)
    for node in all_nodes(model.graph):
        product = _product(node)
        if product is not None:
            groups[_key(product)].append(product)
    edits = 0
    names = Names(model)
    for products in groups.values():
        if len(products) > 1 and ctx.edit("JoinProducts", products[0].op.node):
            _join(products, Builder(model, products[0].op.node, names), ctx)
            edits += 1
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _product(node: ir.Node) -> _Product | None:
    op = linear_of(node) if node.op_type in ("MatMul", "Gemm") else ""
    if isinstance(op, str) or op.stacked or op.left or op.turned or op.shared:
        return None
    if constant_shape(op.weight) is None or op.dtype not in FLOATS:
        return None
    bias, last = op.bias, node
    if node.op_type == "MatMul" and (add := bias_add(op)) is not None:
        other = next(v for v in add.inputs if v is not op.y)
        if constant_shape(other) == (op.out_channels,) and not add.outputs[0].is_graph_output():
            bias, last = other, add
    if bias is not None and constant_shape(bias) != (op.out_channels,):
        return None
    return None if last.outputs[0].is_graph_output() else _Product(op, last, bias)


def _key(product: _Product) -> Any:
    """Equal for products that may be joined."""
    op, _, bias = product
    form = (op.node.op_type, op.alpha, op.beta, op.out_axis, op.dtype, bias is None)
    return id(op.node.graph), id(op.x), form


def _join(products: list[_Product], op: Builder, ctx: Context) -> None:
    """One product and one Split, right after what they read."""
    one = products[0].op
    first, x = one.node, one.x
    name = "_".join(p.op.weight.name or "weight" for p in products)
    weight = np.concatenate([p.op.array() for p in products], one.out_axis)
    inputs = [x, op.constant(weight, name)]
    bias = None
    if products[0].bias is not None:
        bias = op.constant(np.concatenate([array_of(p.bias) for p in products]), f"{name}_bias")
    made: list[ir.Node] = []
    if first.op_type == "Gemm":
        inputs += [] if bias is None else [bias]
        made.append(op.node("Gemm", inputs, dict(first.attributes)))
    else:
        made.append(op.node("MatMul", inputs))
        if bias is not None:
            made.append(op.node("Add", [made[0].outputs[0], bias]))
    sizes = op.constant(np.array([p.op.out_channels for p in products], np.int64), "widths")
    whole = made[-1].outputs[0]
    made.append(op.node("Split", [whole, sizes], {"axis": -1}, outputs=len(products)))
    at = x
    for node in made:
        place_after(node, at)
        at = node.outputs[0]
    provenance.derive(
        made, [n for p in products for n in dict.fromkeys((p.op.node, p.last))], ctx.pass_name
    )
    for product, part in zip(products, made[-1].outputs, strict=True):
        op.take_over(product.last.outputs[0], part)
    remove_dead([p.last for p in products])
