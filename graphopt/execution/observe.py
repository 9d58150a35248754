"""Intermediate values of a model on samples, streamed one run at a time.

Passes that calibrate, score or refit reduce what they see run by run, so memory does not grow with
the number of samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphopt.execution.runtime import Arrays, run_each

__all__ = ["observe", "with_outputs"]


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A clone of `model` (tensors shared) that has computed values of its main graph as outputs.

    Those that are outputs already stay where they are; the others follow in the order given.

    Raises:
        KeyError: a name is no computed value of the main graph.
    """
    clone = model.clone()
    made = {o.name: o for node in clone.graph for o in node.outputs}
    present = {o.name for o in clone.graph.outputs}
    clone.graph.outputs.extend(made[n] for n in dict.fromkeys(names) if n not in present)
    return clone


def _up_to(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """What computes these values; of none, the whole model."""
    clone = with_outputs(model, names)
    if names:
        kept = set(names)
        clone.graph.outputs[:] = [v for v in clone.graph.outputs if v.name in kept]
        RemoveUnusedNodesPass()(clone)
    return clone


def observe(
    model: ir.Model, names: Iterable[str], samples: Iterable[Arrays]
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """For each of `samples`, the arrays of the named values of the main graph, by name.

    `model` is not changed: a clone that shares its tensors has them as its outputs, and only the
    nodes that they need. Graph inputs and initializers can be named too.

    Raises:
        KeyError: a name is no value of the main graph.
    """
    wanted = list(dict.fromkeys(names))
    given = {v.name for v in model.graph.inputs}
    initializers = model.graph.initializers
    held = {n: initializers[n].const_value for n in wanted if n in initializers and n not in given}
    constants = {n: tensor.numpy() for n, tensor in held.items() if tensor is not None}
    clone = _up_to(model, [n for n in wanted if n not in given and n not in held])
    ahead: deque[Arrays] = deque()

    def remembered() -> Iterator[Arrays]:
        for feed in samples:
            ahead.append(feed)
            yield feed

    for outputs in run_each(clone, remembered()):
        known = {**constants, **ahead.popleft(), **outputs}
        yield {name: known[name] for name in wanted}
