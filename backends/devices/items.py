"""One item of a batch: a model of fixed batch as a model of one item, if it computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.shapes.analysis import infer
from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.graph.constants import constant_value
from graphopt.samples import stand_ins

__all__ = ["batch_of", "one_item"]


Array = np.ndarray[Any, Any]


def batch_of(model: ir.Model) -> int:
    """The size of the leading axis that all inputs and outputs share, or 1."""
    values = [*_inputs(model), *model.graph.outputs]
    first = {str(v.shape[0]) if v.shape else "" for v in values}
    (only,) = first if len(first) == 1 else ("",)
    return int(only) if only.isdigit() else 1


def one_item(model: ir.Model, batch: int) -> ir.Model | None:
    """A model of one item (it shares the weights), or None if its items are not computed alone.

    Shapes that begin with the batch begin with one, and constants that repeat for each item are
    there once; then it is run, item by item, beside the model.
    """
    clone = model.clone()
    for end in (*_inputs(clone), *clone.graph.outputs):
        assert end.shape is not None
        end.shape = ir.Shape([1, *end.shape[1:]])
    for node in clone.graph:
        for made_here in node.outputs:
            if not made_here.is_graph_output():
                made_here.shape = None
        for k, value in enumerate(node.inputs):
            made = _of_one(node, k, value, batch)
            if made is not None:
                name = f"{node.name}_{k}_of_one_item"
                tensor = ir.tensor(made, name=name)
                held = ir.Value(name=name, const_value=tensor, shape=ir.Shape(made.shape))
                held.dtype = tensor.dtype
                clone.graph.initializers[name] = held
                node.replace_input_with(k, held)
    return clone if _same(model, clone, batch) else None


def _of_one(node: ir.Node, k: int, value: ir.Value | None, batch: int) -> Array | None:
    tensor = constant_value(value)
    if tensor is None:
        return None
    array = tensor.numpy()
    if node.op_type in ("Reshape", "Expand") and k == 1:
        sizes = array.tolist()
        if batch in sizes:
            sizes[sizes.index(batch)] = 1
        elif sizes and sizes[0] > 0 and sizes[0] % batch == 0:
            sizes[0] //= batch
        return np.array(sizes, array.dtype)
    if node.op_type not in ("Add", "Concat", "Mul") or array.ndim < 2 or len(array) != batch:
        return None
    return np.array(array[:1]) if (array == array[:1]).all() else None


def _same(model: ir.Model, item: ir.Model, batch: int) -> bool:
    known = infer(item)
    for value in item.graph.outputs:
        if known.static(value) is None:
            return False
    shapes, _ = bind_shapes(model)
    feeds = next(iter(stand_ins(model, shapes=shapes)))
    whole = run(model, feeds)
    try:
        parts = [run(item, {n: a[k : k + 1] for n, a in feeds.items()}) for k in range(batch)]
    except ModelError:
        return False
    joined = {n: np.concatenate([p[n] for p in parts]) for n in whole}
    return all(
        joined[n].shape == a.shape and np.allclose(joined[n], a, rtol=1e-4, atol=1e-6)
        for n, a in whole.items()
    )


def _inputs(model: ir.Model) -> Iterator[ir.Value]:
    return (v for v in model.graph.inputs if not v.is_initializer())
