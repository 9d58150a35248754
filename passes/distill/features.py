"""Feature distillation: values of the student that are still values of the original.

Two values are the same if they have one name or share provenance (see
`graphopt.verification.layer_errors`). Along channels that pruning cut, the student's is compared
with the indices that were kept: those of the weight that writes them (see `graphopt.graph.kept`),
followed through elementwise operators and pooling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.calibration.padding import Padding
from graphopt.execution.observe import observe
from graphopt.graph.kept import kept_indices
from graphopt.verification.layer_errors import same_values

__all__ = ["Feature", "shared_features"]

Array = np.ndarray[Any, Any]
#: Operators whose output has the channels of their first input, in place.
_CARRIES = frozenset({
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "Erf", "Gelu", "Softplus", "Mish", "Clip", "Identity", "Dropout", "Cast", "Add", "Sub", "Mul",
    "Div", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
})  # fmt: skip
#: How many values are compared, spread evenly over the depth of the model.
COUNT = 6


@dataclasses.dataclass(frozen=True)
class Feature:
    """One value of both models.

    Attributes:
        theirs, ours: its name in the original and in the student.
        kept: per axis, the indices of the original's that the student's has.
        variance: of the original's.
    """

    theirs: str
    ours: str
    kept: dict[int, Array]
    variance: float


def shared_features(
    source: ir.Model,
    model: ir.Model,
    feeds: Mapping[str, Array],
    padding: Padding | None,
    count: int = COUNT,
) -> list[Feature]:
    """At most `count` float values that both models compute, found by running both on `feeds`.

    Of tokens only those count that `padding` leaves of these, the first of the samples.

    Preferred are those that several nodes read, such as residual streams.
    """
    pairs = same_values(source, model)
    outputs = {v.name for v in (*source.graph.outputs, *model.graph.outputs)}
    readers = {o.name: len(o.uses()) for node in source.graph for o in node.outputs}
    known = _kept_values(model)
    names = [n for n in pairs if not outputs & {n, pairs[n]} and readers[n]]
    if not names:
        return []
    theirs = next(iter(observe(source, names, [feeds])))
    ours = next(iter(observe(model, [pairs[n] for n in names], [feeds])))
    found = []
    for name in names:
        a, b = theirs[name], ours[pairs[name]]
        kept = {k % max(a.ndim, 1): i for k, i in known.get(pairs[name], {}).items()}
        shape = tuple(len(kept[k]) if k in kept else d for k, d in enumerate(a.shape))
        if a.dtype.kind != "f" or a.ndim < 2 or shape != b.shape or not np.isfinite(a).all():
            continue
        if padding and padding.by_token(pairs[name]):
            a = a.reshape(-1, a.shape[-1])[padding.masks[0].ravel()]
        variance = float(a.var(dtype=np.float64))
        if variance > 1e-12:
            found.append(Feature(name, pairs[name], kept, variance))
    streams = [f for f in found if readers[f.theirs] > 1]
    chosen = streams if len(streams) >= COUNT // 2 else found
    places = np.unique(np.linspace(0, len(chosen) - 1, count).round().astype(int))
    return [chosen[k] for k in places] if chosen else []


def _kept_values(model: ir.Model) -> dict[str, dict[int, Array]]:
    """Per value and axis, the indices of the original's that are left, where they can be told."""
    weights = kept_indices(model)
    found: dict[ir.Value, dict[int, Array]] = {}
    for node in model.graph:
        value = node.outputs[0] if node.outputs else None
        if value is None or node.domain not in ("", "ai.onnx") or not node.inputs:
            continue
        kept: dict[int, Array] = {}
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        axes = weights.get(weight.name or "", {}) if weight is not None else {}
        if node.op_type == "Conv" and 0 in axes:
            kept = {1: axes[0]}
        elif node.op_type == "ConvTranspose" and 1 in axes:
            kept = {1: axes[1]}
        elif node.op_type == "Gemm":
            axis = 0 if node.attributes.get_int("transB", 0) else 1
            kept = {-1: axes[axis]} if axis in axes else {}
        elif node.op_type == "MatMul" and axes:
            last = max(axes)
            kept = {-1: axes[last]} if last == 1 else {}
        elif node.op_type in _CARRIES:
            given = [found[v] for v in node.inputs if v is not None and found.get(v)]
            kept = given[0] if given else {}
        found[value] = kept
    return {v.name: k for v, k in found.items() if v.name and k}
