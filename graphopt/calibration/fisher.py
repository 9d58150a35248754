"""Fisher: what errors in layers would add to the outputs' divergence, by one backward pass.

By the Fisher matrix of each (see `graphopt.execution.gradients`), an error e that is spread evenly
over a tensor of n elements adds

    1/2 e^T F e  =  1/2 |e|^2 tr(F) / n

to the divergence of the outputs, in nats (or half variances) a row. The figures are for |e| as
large as the tensor itself; an error of relative L2 size r adds r^2 times as much. An estimate for
all layers at once; what a change does to the outputs is measured in `calibration.sensitivity`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import onnx_ir as ir

from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.gradients import backward
from graphopt.graph.constants import is_constant, weight_of

__all__ = ["Divergence", "fisher"]

#: What counts as a layer, by operator.
LAYERS = frozenset(
    {"Conv", "ConvTranspose", "Einsum", "Gather", "Gemm", "GRU", "LSTM", "MatMul", "RNN"}
)


@dataclasses.dataclass(frozen=True)
class Divergence:
    """What relative errors of size 1 in one layer add to the outputs' divergence, per row.

    Attributes:
        weight: errors in its weights (0 if it has none of its own).
        activation: errors in its first input that is no weight (0 if that is a model input).
    """

    weight: float
    activation: float


def fisher(ctx: Context) -> dict[str, Divergence]:
    """What errors in every layer of the main graph add, by node name, on the context's samples.

    One backward pass over the samples, for all layers together. Needs the torch extra.

    Raises:
        UsageError: the context has no samples.
        MissingExtra: torch is not installed.
    """
    if ctx.samples is None:
        raise UsageError("fisher needs samples: what errors do depends on the inputs")
    weights: dict[str, list[str]] = {}
    tensors: dict[str, ir.TensorProtocol] = {}
    inputs: dict[str, str] = {}
    for node in ctx.model.graph:
        if node.op_type not in LAYERS:
            continue
        given = [v for v in node.inputs if v is not None]
        held = {w.root.name or "": w.tensor for v in given if (w := weight_of(v)) is not None}
        tensors |= held
        computed = [v for v in given if not is_constant(v) and v.producer() is not None]
        weights[node.name or ""] = sorted(held)
        if computed:
            inputs[node.name or ""] = computed[0].name or ""
    square: dict[str, float] = defaultdict(float)
    trace: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    rows = 0
    wanted = sorted(set(inputs.values()))
    for step in backward(ctx.model, ctx.samples, loss="drawn", seed=ctx.seed, values=wanted):
        rows += step.rows
        for name, gradient in step.weights.items():
            trace[name] += float(np.vdot(gradient, gradient))
        for name, (value, gradient) in step.values.items():
            trace[f"x:{name}"] += float(np.vdot(gradient, gradient))
            square[f"x:{name}"] += float(np.vdot(value, value))
            size[f"x:{name}"] += value.size
    for name in trace.keys() & tensors.keys():
        array = tensors[name].numpy()
        square[name], size[name] = float(np.vdot(array, array)), array.size

    def added(name: str) -> float:
        """1/2 |tensor|^2 tr(F) / n, with the trace a row."""
        return square[name] * trace[name] / (2 * size[name] * rows) if name in trace else 0.0

    return {
        node: Divergence(sum(added(w) for w in held), added(f"x:{inputs.get(node, '')}"))
        for node, held in weights.items()
    }
