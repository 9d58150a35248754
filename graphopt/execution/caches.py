"""Quantized key-value caches: models that keep theirs in integers, fed and read in floats.

    q = clip(round(x / s), -128, 127),    x ~ s q

Whoever compares or judges such a model needs no other inputs than for its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.attributes import attribute

__all__ = ["CACHES", "as_floats", "as_held", "in_floats", "quantized_caches"]

Array = np.ndarray[Any, Any]
_Predict = Callable[[Mapping[str, Array]], dict[str, Array]]

#: GroupQueryAttention: past input, present output, and the input that holds the scales.
CACHES = ((3, 1, 12), (4, 2, 13))


def quantized_caches(model: ir.Model) -> dict[str, Array]:
    """Scales of the inputs and outputs that hold a cache in integers [1, heads, 1, size]."""
    found: dict[str, Array] = {}
    for node in model.graph:
        if node.op_type != "GroupQueryAttention" or len(node.inputs) < 14:
            continue
        heads = attribute(node, "kv_num_heads", 1)
        for past, present, scale in CACHES:
            given, held = node.inputs[past], node.inputs[scale]
            if given is None or held is None or held.const_value is None:
                continue
            scales = held.const_value.numpy()
            scales = scales.reshape((1, heads, 1, -1) if scales.size > 1 else (1, 1, 1, 1))
            found.update({v.name: scales for v in (given, node.outputs[present]) if v.name})
    return found


def as_held(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Feeds with caches in the integers that `model` takes, where they are floats."""
    scales = quantized_caches(model)
    return {n: _rounded(a, scales[n]) if n in scales else a for n, a in feeds.items()}


def as_floats(model: ir.Model, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs with the caches that `model` makes in integers in its other outputs' type."""
    scales = quantized_caches(model)
    dtypes = (v.dtype for v in model.graph.outputs)
    floats = [t for t in dtypes if t is not None and t.is_floating_point()]
    dtype = floats[0].numpy() if floats else np.dtype(np.float32)
    return {
        n: (a * scales[n]).astype(dtype) if n in scales and a.dtype.kind == "i" else a
        for n, a in outputs.items()
    }


def in_floats(model: ir.Model, predict: _Predict) -> _Predict:
    """`predict` of a model with such caches, its cache given and returned in the logits' type."""
    if not quantized_caches(model):
        return predict
    return lambda feeds: as_floats(model, predict(as_held(model, feeds)))


def _rounded(array: Array, scales: Array) -> Array:
    if array.dtype.kind == "i":
        return array
    return np.clip(np.rint(array.astype(np.float32) / scales), -128, 127).astype(np.int8)
