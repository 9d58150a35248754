"""Parts of a model timed beside each other: nodes cut out alone, pairs lowered for a target."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, Timing, backend_of
from graphopt.context import Timer
from graphopt.graph.constants import constant_value
from graphopt.target import Target

__all__ = ["cut_out", "timer_of"]


def timer_of(target: Target) -> Timer | None:
    """Times two models on the same feeds on `target`; None where that can't be done here."""
    backend = backend_of(target) if target.measured else None
    if backend is None:
        return None

    def timed(a: ir.Model, b: ir.Model, feeds: Arrays, seconds: float) -> Timing:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            Path(folder, "b").mkdir()
            first = backend.lower(a, target, Path(folder, "model.onnx"))
            second = backend.lower(b, target, Path(folder, "b", "model.onnx"))
            return backend.measure(first, second, feeds, target, seconds)

    return timed


def cut_out(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    form_of: Callable[[ir.Value], tuple[Sequence[int], ir.DataType] | None],
    *,
    below: int = 2,
) -> tuple[ir.Model, Arrays] | None:
    """`nodes` alone as a model that computes `outputs`, and inputs for it.

    Where an output is made behind them (a bias that is added), the nodes between belong to it.

    Args:
        model: the model they are in; it is not changed, and its tensors are shared.
        nodes: in topological order, of one graph (the main one or another).
        outputs: values that they make.
        form_of: concrete shape and element type of a value that they read and that is no constant.
        below: integers that are read are drawn below this; floats are normal.

    Returns:
        The model and its feeds, or None where the form of an input is not known.
    """
    nodes = list(nodes)
    for output in outputs:
        nodes += _behind(output, set(nodes))
    inside = set(nodes)
    inputs: dict[ir.Value, np.ndarray[Any, Any]] = {}
    before: dict[ir.Node, None] = {}
    rng = np.random.default_rng(0)
    for value in itertools.chain.from_iterable(n.inputs for n in nodes):
        if value is None or value.producer() in inside or value in inputs:
            continue
        made = _makers(value)
        if made is not None:
            before.update(dict.fromkeys(made))
            continue
        form = form_of(value)
        if form is None:
            return None
        shape, kind = form[0], form[1].numpy()
        drawn = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, below, shape)
        inputs[value] = drawn.astype(kind)
    every = [*before, *nodes]
    read = dict.fromkeys(v for n in every for v in n.inputs if v is not None)
    view = ir.GraphView(
        list(inputs),
        outputs,
        nodes=every,
        initializers=tuple(v for v in read if v.producer() is None and v not in inputs),
        opset_imports=model.graph.opset_imports,
        name="cut",
    )
    graph = view.clone()
    for value, array in zip(graph.inputs, inputs.values(), strict=True):
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    feeds = {v.name or "": a for v, a in zip(graph.inputs, inputs.values(), strict=True)}
    return ir.Model(graph, ir_version=model.ir_version), feeds


def _behind(value: ir.Value, inside: set[ir.Node], depth: int = 4) -> list[ir.Node]:
    """The nodes that lead from those inside to `value`, first ones first; a few steps at most."""
    node = value.producer()
    if node is None or node in inside or not depth:
        return []
    found: list[ir.Node] = []
    read = [v for v in node.inputs if v is not None]
    for one in read:
        found += [n for n in _behind(one, inside, depth - 1) if n not in found]
    made = {*inside, *found}
    return [*found, node] if any(v.producer() in made for v in read) else []


def _makers(value: ir.Value) -> list[ir.Node] | None:
    """The nodes that make a value of initializers alone, first ones first; None if more is read."""
    made: list[ir.Node] = []
    seen: set[ir.Node] = set()
    stack: list[ir.Value | ir.Node] = [value]  # a node: what it reads is done
    while stack:
        one = stack.pop()
        if isinstance(one, ir.Node):
            made.append(one)
            continue
        node = one.producer()
        if node is None:
            if constant_value(one) is None:
                return None
        elif node not in seen:
            seen.add(node)
            read = [v for v in node.inputs if v is not None]
            if not read and node.op_type != "Constant":
                return None
            stack += [node, *reversed(read)]
    return made
