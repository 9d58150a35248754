"""Saturated outputs: probabilities so sure that their margin is rounded away, and their logits.

    p = sigmoid(z) = 1 - 1e-40 is 1 in float32, whatever becomes of z

Where most answers on the samples are like that, what goes into the last Sigmoid or Softmax is
looked at in their stead: of the source and of every model that is judged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.execution.observe import with_outputs
from graphopt.execution.runtime import opened

__all__ = ["LEAST", "LOGITS", "PASSES_ON", "made_by", "opened_with_logits", "saturated"]

Array = np.ndarray[Any, Any]
#: Operators that hand values on as they are.
PASSES_ON = frozenset(
    {"Cast", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
#: What the logits of an output are called among the outputs of a run.
LOGITS = "{}\0logits"
#: Chances below this are as good as none: the least of float32, since what looks settled (1e-20
#: beside 1) may be a small margin to errors that large.
LEAST = 1e-37
#: The share of answers without a margin from which on an output tells too little.
_BLIND = 0.5
#: Operators that saturate.
_SATURATING = ("Sigmoid", "Softmax")


def made_by(value: ir.Value) -> ir.Node | None:
    """The operator that computes an output: what only hands values on is passed over."""
    node = value.producer()
    while node is not None and node.op_type in PASSES_ON and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def saturated(kind: str, arrays: Sequence[Array]) -> bool:
    """Whether most of the answers, chances or scores of rows, have no margin that float32 shows."""
    if kind == "chances":
        every = np.concatenate([np.ravel(a) for a in arrays])
        blind = (every < LEAST) | (1 - every < np.finfo(np.float32).eps)
    elif kind == "scores":
        rows = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
        blind = (np.sort(rows, axis=-1)[:, -2] < LEAST) & (rows >= 0).all()  # of logarithms: none
    else:
        return False
    return bool(blind.size) and float(np.mean(blind)) > _BLIND


@contextlib.contextmanager
def opened_with_logits(
    model: ir.Model, names: Sequence[str]
) -> Iterator[Callable[[Mapping[str, Array]], dict[str, Array]]]:
    """As `opened`, with the logits of these outputs beside them where the model still has them."""
    sought = {n: _logits_of(v) for v in model.graph.outputs if (n := v.name or "") in names}
    found = {n: v.name for n, v in sought.items() if v is not None and v.name}
    with opened(with_outputs(model, found.values()) if found else model) as predict:

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            outputs = predict(feeds)
            return {**outputs, **{LOGITS.format(n): outputs[v] for n, v in found.items()}}

        yield run


def _logits_of(output: ir.Value) -> ir.Value | None:
    node = made_by(output)
    if node is None or node.op_type not in _SATURATING:
        return None
    value = node.inputs[0]
    return value if value is not None and value.producer() is not None else None
