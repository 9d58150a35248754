"""Observing: the values inside a model on samples, streamed one run at a time.

Passes that calibrate, score or refit reduce what they see run by run, so memory does not grow with
the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.runtime import Arrays, run_each

__all__ = ["observe"]


def observe(
    model: ir.Model, names: Iterable[str], samples: Iterable[Arrays]
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """For each of `samples`, the arrays of the named values of the main graph, by name.

    `model` is not changed: a clone that shares its tensors gets the values as further outputs.
    Graph inputs and initializers can be named too.

    Raises:
        KeyError: a name is no value of the main graph.
    """
    wanted = list(dict.fromkeys(names))
    clone = model.clone()
    graph = clone.graph
    values = {v.name: v for v in (*graph.inputs, *graph.initializers.values())}
    values.update({o.name: o for node in graph for o in node.outputs})
    present = {o.name for o in graph.outputs}
    given = {v.name for v in graph.inputs}
    for name in wanted:
        value = values[name]
        if name not in present and name not in given and not value.is_initializer():
            graph.outputs.append(value)
    constants = {
        n: values[n].const_value.numpy()  # type: ignore[union-attr]
        for n in wanted
        if values[n].is_initializer() and n not in given
    }
    feeds: list[Arrays] = []

    def remembered() -> Iterator[Arrays]:
        for feed in samples:
            feeds[:] = [feed]
            yield feed

    for outputs in run_each(clone, remembered()):
        known = {**constants, **feeds[0], **outputs}
        yield {name: known[name] for name in wanted}
