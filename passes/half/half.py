"""Half: weights stored in float16 or bfloat16 and cast to float32 where they are read.

    W (float32)    ->    Cast(W', to=float32),    W' = W rounded to 16 bits

The file halves and every runtime reads it; computing stays in float32, so nothing overflows but
what a weight itself does. What operators then make of rounded weights is measured on samples: where
their terms cancel, roundings do not. Runtimes compute the casts once, when they load the model:
memory is then what it was. To compute in half precision too, use `fp16`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt.calibration.precision import MOST, rounding_errors
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names
from graphopt.pass_ import Pass

__all__ = ["Half"]

#: Smaller tensors save less than a Cast takes.
SMALLEST = 256
#: The element types: numpy's, the first opset whose Cast knows it, and the relative L2 error of a
#: weight that its steps account for; what is beyond is lost below the smallest number.
_KINDS: dict[str, tuple[Any, int, float]] = {
    "float16": (np.float16, 6, 2.0**-11),
    "bfloat16": (ml_dtypes.bfloat16, 13, 2.0**-8),
}


@dataclass(frozen=True)
class Half(Pass):
    """Store float32 weights in 16 bits; computing, inputs and outputs stay float32.

    Weights that overflow, or lose more than their steps account for, stay float32, and so do those
    of operators whose outputs on samples move by more than 16 times that.

    Attributes:
        dtype: "float16" (11 bits of precision) or "bfloat16" (8 bits, the range of float32).
    """

    dtype: Literal["float16", "bfloat16"] = "float16"

    lossy: ClassVar[bool] = True
    compresses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dtype not in _KINDS:
            raise ValueError(f"dtype is 'float16' or 'bfloat16', not '{self.dtype}'")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Replace weights of the main graph in place; returns how many."""
        dtype, opset, most = _KINDS[self.dtype]
        if (model.graph.opset_imports.get("") or 1) < opset:
            return ctx.nothing(f"{self.dtype} needs opset {opset}")
        kept: dict[ir.Value, tuple[Any, str]] = {}
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST:
                continue
            if value.is_graph_input() or value.is_graph_output() or not value.uses():
                continue
            array = tensor.numpy()
            with np.errstate(over="ignore"):
                small = array.astype(dtype)
            kept[value] = small, _lost(array, small.astype(np.float32), most)
        moved = self._moved(model, [v for v, (_, reason) in kept.items() if not reason], ctx)
        names = Names(model)
        found = 0
        for value, (small, reason) in kept.items():
            error = max((moved.get(u.node, 0.0) for u in value.uses()), default=0.0)
            if not reason and error > MOST * most:
                reason = f"outputs that follow it move by {error:.2g} of themselves"
            if reason:
                ctx.refuse(self, value, f"{reason}: it stays float32")
            elif ctx.edit(self, value):
                _replace(model, value, ir.Tensor(small), names, ctx)
                found += 1
        return found or ctx.nothing("no weight is worth storing in 16 bits")

    def _moved(
        self, model: ir.Model, values: Collection[ir.Value], ctx: Context
    ) -> dict[ir.Node, float]:
        """By reader, how far its outputs move on samples if these weights of it are rounded."""
        if ctx.samples is None:
            return {}
        places: dict[ir.Node, list[int]] = defaultdict(list)
        for value in values:
            for node, index in value.uses():
                if node.graph is model.graph:
                    places[node].append(index)
        return rounding_errors(model, places, ir.DataType[self.dtype.upper()], ctx.samples)


def _lost(array: Any, back: Any, most: float) -> str:
    """What rounding does to a weight beyond the steps' own error, or ""."""
    if not np.isfinite(back).all():
        return "it overflows" if np.isfinite(array).all() else "it is not finite"
    off, size = (float(np.linalg.norm(a.astype(np.float64))) for a in (back - array, array))
    return f"it loses {off / size:.2g} of itself" if off > most * size else ""


def _replace(
    model: ir.Model, value: ir.Value, small: ir.Tensor[Any], names: Names, ctx: Context
) -> None:
    """A Cast before whatever reads the weight, which goes."""
    readers = [u.node for u in value.uses()]
    builder = Builder(model, model.graph[0], names)
    stored = builder.constant(small, f"{value.name}_{small.dtype.name.lower()}")
    stored.const_value = ir.Tensor(small.numpy(), name=stored.name)
    cast = builder.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}).outputs[0]
    cast.type, cast.shape = value.type, value.shape
    value.replace_all_uses_with(cast)
    assert value.name is not None
    del model.graph.initializers[value.name]
    provenance.derive(builder.nodes, readers, ctx.pass_name)
