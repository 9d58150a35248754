"""Products that share an operand become one, where the target runs one wide product faster."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import attribute
from graphopt.passes.fuse.layout.slices import place_after
from graphopt.passes.fuse.weights import FLOATS, array, constant_shape, shared

from graphopt import Context
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.traverse import all_nodes

__all__ = ["join_products"]


class _Product(NamedTuple):
    """x W + b: the node that multiplies, the one that adds (the same in a Gemm), b or None."""

    node: ir.Node
    last: ir.Node
    weight: ir.Value
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
        if len(products) > 1 and ctx.edit("JoinProducts", products[0].node):
            _join(products, Builder(model, products[0].node, names), ctx)
            edits += 1
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _product(node: ir.Node) -> _Product | None:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return None
    x, weight = node.inputs[:2]
    sizes = constant_shape(weight)
    if x is None or weight is None or sizes is None or len(sizes) != 2 or shared(weight):
        return None
    if weight.dtype not in FLOATS or constant_shape(x) is not None:
        return None
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        width = sizes[0 if attribute(node, "transB") else 1]
        if attribute(node, "transA") or (bias is not None and constant_shape(bias) != (width,)):
            return None
        return None if node.outputs[0].is_graph_output() else _Product(node, node, weight, bias)
    out = node.outputs[0]
    add = out.consumers()[0] if len(out.uses()) == 1 else None
    if add is not None and add.op_type == "Add" and add.graph is node.graph:
        other = add.inputs[1] if add.inputs[0] is out else add.inputs[0]
        if constant_shape(other) == sizes[1:] and not add.outputs[0].is_graph_output():
            return _Product(node, add, weight, other)
    return None if out.is_graph_output() else _Product(node, node, weight, None)


def _key(product: _Product) -> Any:
    """Equal for products that may be joined."""
    node, _, weight, bias = product
    settings = tuple(attribute(node, n) for n in ("alpha", "beta", "transB"))
    return id(node.graph), id(node.inputs[0]), node.op_type, bias is None, weight.dtype, settings


def _join(products: list[_Product], op: Builder, ctx: Context) -> None:
    """One product and one Split, right after what they read."""
    first = products[0].node
    x = first.inputs[0]
    assert x is not None
    turned = first.op_type == "Gemm" and bool(attribute(first, "transB"))
    arrays = [array(p.weight) for p in products]
    widths = [a.shape[0 if turned else 1] for a in arrays]
    name = "_".join(p.weight.name or "weight" for p in products)
    inputs = [x, op.constant(np.concatenate(arrays, 0 if turned else 1), name)]
    bias = None
    if products[0].bias is not None:
        bias = op.constant(np.concatenate([array(p.bias) for p in products]), f"{name}_bias")
    made: list[ir.Node] = []
    if first.op_type == "Gemm":
        inputs += [] if bias is None else [bias]
        made.append(op.node("Gemm", inputs, dict(first.attributes)))
    else:
        made.append(op.node("MatMul", inputs))
        if bias is not None:
            made.append(op.node("Add", [made[0].outputs[0], bias]))
    sizes = op.constant(np.array(widths, np.int64), "widths")
    whole = made[-1].outputs[0]
    made.append(op.node("Split", [whole, sizes], {"axis": -1}, outputs=len(products)))
    at = x
    for node in made:
        place_after(node, at)
        at = node.outputs[0]
    provenance.derive(
        made, [n for p in products for n in dict.fromkeys((p.node, p.last))], ctx.pass_name
    )
    for product, part in zip(products, made[-1].outputs, strict=True):
        op.take_over(product.last.outputs[0], part)
    remove_dead([p.last for p in products])
