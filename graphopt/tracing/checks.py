"""Whether a traced model computes what the module computes, and what it cannot hold.

Compared on the example inputs and, where axes are dynamic, on other sizes: one, one more, and those
beside every size that the trace relies on. A branch on a size that the trace has fixed shows there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.runtime import run_each
from graphopt.graph.evaluation import RANDOM
from graphopt.tracing.axes import Axis, guards_on
from graphopt.tracing.blame import line_of_node
from graphopt.tracing.capture import Captured, resized
from graphopt.tracing.torch_side import array_of, leaves
from graphopt.verification.comparison import compare_outputs

__all__ = ["check_against_torch", "check_state", "example_feeds"]

Feeds = dict[str, np.ndarray[Any, Any]]
#: Largest relative L2 difference between two implementations of one module, by the coarsest type
#: that it computes in: about a thousand roundings of each.
_TOLERANCE = {ir.DataType.BFLOAT16: 0.1, ir.DataType.FLOAT16: 0.02}
_FLOAT_TOLERANCE = 1e-3
#: Other sizes tried per axis, and how many times the example's size they may be.
_SIZES, _GROWTH = 6, 4


def check_state(program: Any) -> list[str]:
    """Notes on state that ONNX does not keep between runs.

    Raises:
        ModelError: outputs depend on a buffer that the module writes to.
    """
    signature = program.graph_signature
    written = dict(signature.buffers_to_mutate)
    notes = []
    if written:
        nodes = {n.name: n for n in program.graph.nodes}
        shown = _ancestors([nodes[o] for o in signature.user_outputs if o in nodes])
        for node_name, buffer in written.items():
            place = line_of_node(nodes[node_name])
            where = f" at {place}" if place else ""
            reads = [n for n, b in signature.inputs_to_buffers.items() if b == buffer]
            if any(nodes[n] in shown for n in reads):
                raise ModelError(
                    f"the module writes to its buffer '{buffer}'{where} and its outputs depend on "
                    "it: a model keeps nothing between runs. Take the state as an input of "
                    "forward and return the new one"
                )
            notes.append(f"The module writes to its buffer '{buffer}'{where}; the model does not.")
    for name in dict(signature.user_inputs_to_mutate).values():
        notes.append(f"The module changes its input '{name}' in place; the model does not.")
    return notes


def _ancestors(nodes: list[Any]) -> set[Any]:
    found: set[Any] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def example_feeds(model: ir.Model, captured: Captured) -> Feeds | None:
    """The example inputs as arrays by the model's input names, or None if there are none."""
    if captured.args is None:
        return None
    return _feeds(model, captured.args, captured.kwargs)


def check_against_torch(model: ir.Model, captured: Captured) -> list[str]:
    """Compare the model with the module; returns notes on what could not be compared.

    Raises:
        ModelError: they differ.
    """
    if captured.args is None:
        return ["The file holds no example inputs: the model was not compared with PyTorch."]
    if any(n.op_type in RANDOM for n in model.graph.all_nodes()):
        return ["The module draws random numbers: the model was not compared with PyTorch."]
    types = {v.dtype for n in model.graph.all_nodes() for v in n.outputs}
    tolerance = max([_FLOAT_TOLERANCE, *(t for kind, t in _TOLERANCE.items() if kind in types)])
    runs = [(None, 0, captured.args, captured.kwargs), *_other_sizes(captured)]
    notes: list[str] = []
    for axis, size, args, kwargs in runs:
        given = _feeds(model, args, kwargs)
        try:
            expected = _outputs(model, captured.call(*args, **kwargs))
        except Exception:
            if axis is None:
                raise
            continue  # the module itself does not take this size
        try:
            got = next(run_each(model, [given]))
        except ModelError as error:
            notes.append(_does_not_run(axis, size, error))
            continue
        compared = compare_outputs([expected], [got])
        if compared.worst > tolerance:
            again = _outputs(model, captured.call(*args, **kwargs))
            if compare_outputs([expected], [again]).worst > tolerance:
                raise ModelError(_RANDOMLY)
            found = compared.broken or f"outputs differ by {compared.worst:.2g} (relative L2)"
            raise ModelError(_differs(captured, axis, size, found))
    return notes


_RANDOMLY = (
    "the module gives other outputs in every run, in evaluation mode too: look for F.dropout "
    "without training=self.training, and for random numbers in forward"
)


def _does_not_run(axis: Axis | None, size: int, error: ModelError) -> str:
    if axis is None:
        return f"The model was not compared with PyTorch: {error}."
    return f"With {axis} of size {size} the module runs and the model does not: {error}."


def _differs(captured: Captured, axis: Axis | None, size: int, found: str) -> str:
    if axis is None:
        return (
            f"the traced model computes something else than the module: {found}. Please report it "
            "with the module"
        )
    guards = [g for g in guards_on(captured.program, axis.symbol) if g.where]
    lines = ", ".join(dict.fromkeys(g.where for g in guards))
    why = f"the code branches on it at {lines}, and the trace" if lines else "the trace"
    return (
        f"with {axis} of size {size} the traced model computes something else than the module "
        f"({found}): {why} follows the example inputs (size {axis.size}). Write the branch with "
        f"torch.cond, or bound the axis, for example torch.export.Dim('{axis.wanted.name or 'n'}', "
        f"{'min' if size < axis.size else 'max'}={size + (1 if size < axis.size else -1)})"
    )


def _other_sizes(captured: Captured) -> Iterator[tuple[Axis, int, tuple[Any, ...], dict[str, Any]]]:
    """The example inputs with one dynamic axis at another size, as often as is worth trying."""
    seen: set[str] = set()
    for axis in captured.axes:
        keys = {axis.symbol, axis.wanted.name or axis.symbol}
        if keys & seen or not re.fullmatch(r"\w+", axis.symbol):
            continue
        seen |= keys
        for size in _sizes(captured.program, axis):
            args, kwargs = resized(captured, axis, size)
            yield axis, size, args, kwargs


def _sizes(program: Any, axis: Axis) -> list[int]:
    numbers = [
        int(n) for g in guards_on(program, axis.symbol) for n in re.findall(r"\b\d+\b", g.condition)
    ]
    tried = [1, axis.size + 1, *(n + d for n in numbers for d in (0, -1, 1))]
    low, high = axis.wanted.low or 1, axis.wanted.high or axis.size * _GROWTH + 8
    fit = [n for n in dict.fromkeys(tried) if low <= n <= high and n != axis.size]
    return fit[:_SIZES]


def _feeds(model: ir.Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Feeds:
    names = [v.name or "" for v in model.graph.inputs]
    tensors = [v for v in leaves((args, kwargs)) if hasattr(v, "ndim")]
    return {n: array_of(t) for n, t in zip(names, tensors, strict=True)}


def _outputs(model: ir.Model, returned: Any) -> Feeds:
    names = [v.name or "" for v in model.graph.outputs]
    values = [v for v in leaves(returned) if v is not None]
    return {
        n: array_of(v) if hasattr(v, "ndim") else np.array(v)
        for n, v in zip(names, values, strict=True)
    }
