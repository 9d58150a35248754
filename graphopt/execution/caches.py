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

__all__ = ["CACHES", "Caches", "quantized_caches"]

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


class Caches:
    """Takes feeds of floats to the integers that a model's caches hold, and its outputs back.

    Args:
        model: perhaps without any such cache; then nothing changes.
    """

    def __init__(self, model: ir.Model) -> None:
        self._scales = quantized_caches(model)
        dtypes = (v.dtype for v in model.graph.outputs)
        floats = [t for t in dtypes if t is not None and t.is_floating_point()]
        self._dtype = floats[0].numpy() if floats else np.dtype(np.float32)

    def held(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Feeds with caches in the integers that the model takes, where they are floats."""
        scales = self._scales
        return {n: _rounded(a, scales[n]) if n in scales else a for n, a in feeds.items()}

    def floats(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs with caches in the type of the other outputs, where they are integers."""
        return {
            n: (a * self._scales[n]).astype(self._dtype)
            if n in self._scales and a.dtype.kind == "i"
            else a
            for n, a in outputs.items()
        }

    def around(self, predict: _Predict) -> _Predict:
        """`predict` of the model, its caches given and returned in floats."""
        if not self._scales:
            return predict
        return lambda feeds: self.floats(predict(self.held(feeds)))


def _rounded(array: Array, scales: Array) -> Array:
    if array.dtype.kind == "i":
        return array
    return np.clip(np.rint(array.astype(np.float32) / scales), -128, 127).astype(np.int8)
