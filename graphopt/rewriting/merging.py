"""Merging models: several graphs as one, inputs of one name shared, outputs combined.

What two of them compute alike is still there twice; `clean` finds equal nodes and equal weights by
their hashes and leaves one of each, so that a common trunk runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import infer
from graphopt.errors import UsageError
from graphopt.graph.building import Builder, Names
from graphopt.graph.traverse import all_graphs
from graphopt.rewriting.opset import raise_opset

__all__ = ["Combine", "merge"]

#: What becomes of outputs at the same place: their mean, the share of models whose largest class it
#: is, all of them side by side along the last axis, or each for itself.
Combine = Literal["mean", "vote", "concat", "none"]
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def merge(models: Sequence[ir.Model], combine: Combine = "none") -> ir.Model:
    """One model that computes what all of them do; they stay as they are.

    Inputs of one name are one input. Where a name is taken, what comes later is called NAME_1 and
    so on. The newest opset of any of them is taken.

    Args:
        models: two or more, of the same outputs unless `combine` is "none".
        combine: "mean" and "vote" take floating-point outputs of the same shape.

    Raises:
        UsageError: inputs of one name differ in type or rank; outputs cannot be combined so.
        ModelError: one of them cannot be raised to the newest opset of the others.
    """
    if len(models) < 2:
        raise UsageError("there is nothing to merge: name two models or more")
    merged, *others = (m.clone() for m in models)
    newest = max(m.graph.opset_imports.get("", 0) for m in models)
    for model in (merged, *others):
        raise_opset(model, newest)
    outputs = [list(merged.graph.outputs)]
    for other in others:
        outputs.append(_take(merged, other))
    merged.ir_version = max(m.ir_version for m in models)
    if combine == "none":
        _name(merged, outputs)
    else:
        _combine(merged, outputs, combine)
    return merged


def _take(merged: ir.Model, other: ir.Model) -> list[ir.Value]:
    """Move another's graph into `merged`; its outputs."""
    graph, taken = merged.graph, other.graph
    for key, function in other.functions.items():
        if key in merged.functions and str(merged.functions[key]) != str(function):
            raise UsageError(f"both models have a function {key}, and they differ: inline it first")
        merged.functions[key] = function
    for domain, version in taken.opset_imports.items():
        have = graph.opset_imports.get(domain, version)
        graph.opset_imports[domain] = max(have, version)
    outputs = list(taken.outputs)
    taken.outputs.clear()
    _rename(other, Names(merged), {v.name for v in taken.inputs})
    shared = {v.name: v for v in graph.inputs}
    for value in list(taken.inputs):
        taken.inputs.remove(value)
        mine = shared.get(value.name)
        if mine is None:
            graph.inputs.append(value)
            continue
        _check_same(mine, value)
        value.replace_all_uses_with(mine)
        outputs = [mine if o is value else o for o in outputs]
    for name, value in list(taken.initializers.items()):
        del taken.initializers[name]
        if not any(value is v for v in graph.inputs) and value.name in graph.initializers:
            continue  # it is a shared input's default
        graph.register_initializer(value)
    nodes = list(taken)
    taken.remove(nodes)
    graph.extend(nodes)
    return outputs


def _rename(other: ir.Model, names: Names, inputs: set[str | None]) -> None:
    """Names that the merged model has not, but for inputs; claims about inner shapes go."""
    for graph in all_graphs(other.graph):
        for value in list(graph.initializers.values()):
            if value.name not in inputs:
                value.name = names.fresh(value.name or "weight")
        for node in graph:
            node.name = names.fresh(node.name or node.op_type)
            for value in node.outputs:
                if value.name:
                    value.name = names.fresh(value.name)
        if graph is not other.graph:
            for value in graph.inputs:
                value.name = names.fresh(value.name or "input")


def _check_same(mine: ir.Value, other: ir.Value) -> None:
    a, b = mine.shape, other.shape
    same = mine.dtype == other.dtype and (a is None or b is None or len(a) == len(b))
    if same and a is not None and b is not None:
        pairs = zip(a, b, strict=True)
        same = all(x == y for x, y in pairs if isinstance(x, int) and isinstance(y, int))
    if not same:
        raise UsageError(
            f"input {mine.name} is {mine.dtype}{a} in one model and {other.dtype}{b} in another"
        )


def _name(merged: ir.Model, outputs: Sequence[Sequence[ir.Value]]) -> None:
    """Every output for itself."""
    graph, names = merged.graph, Names(merged)
    for values in outputs[1:]:
        for value in values:
            if value.producer() is None or value.is_graph_output():
                identity = ir.node("Identity", [value], name=names.fresh("output"))
                identity.outputs[0].name = names.fresh(f"{value.name}_output")
                identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
                graph.append(identity)
                value = identity.outputs[0]
            graph.outputs.append(value)


def _combine(merged: ir.Model, outputs: Sequence[Sequence[ir.Value]], combine: Combine) -> None:
    graph = merged.graph
    if len({len(values) for values in outputs}) != 1:
        raise UsageError(f"--combine {combine}: the models have different numbers of outputs")
    facts = infer(merged)
    for k, values in enumerate(zip(*outputs, strict=True)):
        for value in values:
            dtype = facts.dtype(value) or value.dtype
            if dtype not in FLOATS:
                raise UsageError(
                    f"--combine {combine}: output {value.name} is {dtype}, no floating-point "
                    "numbers; --combine none keeps every model's"
                )
            _check_fits(values[0], value, combine)
        names = Names(merged)
        first = values[0]
        end = ir.node("Identity", [first], name=names.fresh("combined"))
        graph.append(end)
        op = Builder(merged, end, names)
        made = _COMBINED[combine](op, values)
        name, made.type = first.name, first.type
        made.shape = None if first.shape is None else ir.Shape(first.shape)
        if combine == "concat" and made.shape is not None:
            widths = [v.shape[-1] if v.shape is not None else None for v in values]
            known = [w for w in widths if isinstance(w, int)]
            made.shape[-1] = sum(known) if len(known) == len(widths) else None
        graph.remove(end, safe=True)
        graph.outputs[k] = made
        first.name, made.name = names.fresh(f"{name}_0"), name


def _check_fits(first: ir.Value, other: ir.Value, combine: Combine) -> None:
    """Outputs at one place have one shape, but for the axis along which they come side by side."""
    a, b = first.shape, other.shape
    if a is None or b is None:
        return
    axes = len(a) - (combine == "concat")
    pairs = zip(a[:axes], b[:axes], strict=False)
    alike = all(x == y for x, y in pairs if isinstance(x, int) and isinstance(y, int))
    if len(a) != len(b) or not alike:
        raise UsageError(
            f"--combine {combine}: output {first.name} is {a} in one model and {b} in another; "
            "--combine none keeps every model's"
        )


def _mean(op: Builder, values: Sequence[ir.Value]) -> ir.Value:
    return op.Mean(*values)


def _vote(op: Builder, values: Sequence[ir.Value]) -> ir.Value:
    last = [v.shape[-1] if v.shape is not None and len(v.shape) else None for v in values]
    known = set(last)
    if len(known) != 1 or not isinstance(last[0], int):
        raise UsageError(f"--combine vote: how many classes {values[0].name} has is not declared")
    assert values[0].dtype is not None
    depth = op.constant(np.array([last[0]], np.int64), "classes")
    marks = op.constant(np.array([0, 1], values[0].dtype.numpy()), "marks")
    largest = [op.ArgMax(v, axis=-1, keepdims=0) for v in values]
    return op.Mean(*(op.OneHot(x, depth, marks, axis=-1) for x in largest))


def _concat(op: Builder, values: Sequence[ir.Value]) -> ir.Value:
    return op.Concat(*values, axis=-1)


_COMBINED: Mapping[str, Callable[[Builder, Sequence[ir.Value]], ir.Value]] = {
    "mean": _mean,
    "vote": _vote,
    "concat": _concat,
}
