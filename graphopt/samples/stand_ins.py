"""What a model is run on where the user gave no samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.io.reading import examples_of
from graphopt.samples.stream import Samples
from graphopt.samples.synthetic import synthetic

__all__ = ["stand_ins"]


def stand_ins(model: ir.Model, *, seed: int = 0, shapes: Mapping[str, Sequence[int]]) -> Samples:
    """Synthetic inputs, then the example inputs that a traced model brings.

    The first has the given shapes. Where a model with examples does not run on synthetic inputs
    (indices that must fit each other, say), there are the examples alone.
    """
    drawn = synthetic(model, seed=seed, shapes=shapes)
    examples = examples_of(model)
    if not examples:
        return drawn
    try:
        run(model, next(iter(drawn)))
    except ModelError:
        return Samples(examples, "the example inputs", synthetic=True)
    return Samples([*drawn, *examples], "synthetic and example inputs", synthetic=True)
