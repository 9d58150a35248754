"""Common subexpression elimination: equal nodes computed once, equal initializers stored once."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.evaluation import deterministic
from graphopt.graph.traverse import all_graphs, subgraphs
from graphopt.io.tensors import share_key
from graphopt.rewriting.patterns import COMMUTATIVE

__all__ = ["merge_initializers", "merge_nodes"]

#: Bytes compared at a time: memory stays small however large two weights are.
CHUNK = 1 << 20


def merge_nodes(model: ir.Model, ctx: Context) -> int:
    """Common subexpressions: same operator, attributes and inputs -> one node."""
    names = Names(model)
    edits = _merge_in(model.graph, {}, model, ctx, names)
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _merge_in(
    graph: ir.Graph,
    outer: MutableMapping[Any, ir.Node],
    model: ir.Model,
    ctx: Context,
    names: Names,
) -> int:
    """One graph, after what encloses it: a subgraph may reuse what was computed before it."""
    seen = ChainMap({}, outer)
    edits = 0
    for node in list(graph):
        for inner in subgraphs(node):
            edits += _merge_in(inner, seen, model, ctx, names)
        if not deterministic(node):
            continue
        key = _key(node)
        first = seen.setdefault(key, node)
        if first is node or not _covers(first, node) or not ctx.edit("MergeNodes", node):
            continue
        builder = Builder(model, node, names)
        for old, new in zip(node.outputs, first.outputs, strict=True):
            builder.take_over(old, new)
        remove_dead([node])
        edits += 1
    return edits


def _covers(first: ir.Node, node: ir.Node) -> bool:
    """Every output that `node` has, `first` has too, and an Identity would not be needed."""
    return all(
        (a.name or not b.name)
        and not (b.is_graph_output() and (a.is_graph_output() or a.graph is not b.graph))
        for a, b in zip(first.outputs, node.outputs, strict=True)
    )


def _key(node: ir.Node) -> Any:
    inputs = [0 if v is None else id(v) for v in node.inputs]
    if node.op_type in COMMUTATIVE:
        inputs.sort()
    given = node.attributes
    held = tuple(sorted((a.name, _hashable(a)) for a in given.values())) if given else ()
    return node.domain, node.op_type, len(node.outputs), tuple(inputs), held


def _hashable(attribute: ir.Attr) -> Any:
    value = attribute.value
    if attribute.type is ir.AttributeType.TENSOR:
        text = value.dtype is ir.DataType.STRING
        elements = repr(value.numpy().tolist()) if text else value.tobytes()
        return str(value.dtype), tuple(value.shape.numpy()), elements
    if isinstance(value, (list, tuple)):
        return tuple(repr(v) for v in value)
    return repr(value)


def merge_initializers(model: ir.Model, ctx: Context) -> int:
    """Equal initializers of a graph -> one of them. Contents are read where all else fits.

    Weights tied by one place in a file are one without a look at it.
    """
    edits = 0
    for graph in all_graphs(model.graph):
        groups: dict[Any, list[ir.Value]] = defaultdict(list)
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not value.is_graph_input() and not value.is_graph_output():
                groups[tensor.dtype, tuple(tensor.shape.numpy())].append(value)
        for group in groups.values():
            if len(group) > 1:
                edits += _merge_group(group, graph, ctx)
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _merge_group(group: list[ir.Value], graph: ir.Graph, ctx: Context) -> int:
    """Initializers of one type and shape, told apart by a sample of their bytes first."""
    by_sample: dict[bytes, list[ir.Value]] = defaultdict(list)
    by_place: dict[object, ir.Value] = {}
    edits = 0
    for value in group:
        tensor = value.const_value
        assert tensor is not None
        first = by_place.get(share_key(tensor))
        if first is None:
            alike = by_sample[_sample(tensor)]
            first = next((v for v in alike if _equal(v.const_value, tensor)), None)
            if first is None:
                alike.append(value)
            by_place[share_key(tensor)] = first or value
        if first is not None and ctx.edit("MergeInitializers", value):
            value.replace_all_uses_with(first)
            del graph.initializers[value.name or ""]
            edits += 1
    return edits


def _sample(tensor: ir.TensorProtocol) -> bytes:
    """Some bytes from all over the tensor; all of them if it is small."""
    flat = _bytes(tensor)
    if flat is None:
        return repr(tensor.numpy().tolist()).encode()
    if flat.size <= 4096:
        return flat.tobytes()
    return flat[:: max(1, flat.size // 61)].tobytes() + flat[:64].tobytes() + flat[-64:].tobytes()


def _equal(a: ir.TensorProtocol | None, b: ir.TensorProtocol) -> bool:
    """Whether both hold the same bytes (0.0 and -0.0, or two NaN payloads, are different)."""
    assert a is not None
    x, y = _bytes(a), _bytes(b)
    if x is None or y is None:
        return bool(np.array_equal(a.numpy(), b.numpy()))
    return x.size == y.size and all(
        np.array_equal(x[k : k + CHUNK], y[k : k + CHUNK]) for k in range(0, x.size, CHUNK)
    )


def _bytes(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any] | None:
    """The elements as bytes, a view where they lie mapped; None for text."""
    if tensor.dtype is ir.DataType.STRING:
        return None
    array = tensor.numpy()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
