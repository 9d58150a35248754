"""Latency of a factored layer beside the layer, timed on the target.

The layer is cut out with its own weight and the shapes it runs at, and timed in interleaved pairs
against the same cut after the edit. Answers are kept in `ctx.facts["svd"]` by shape, not by layer,
so that equal layers are timed once and a recipe can be replayed without timing. What is known of
one rank answers others: fewer ranks of a faster pair are faster too, more of a slower one slower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd.factorize import replace
from graphopt.passes.svd.layers import Layer, find
from graphopt.passes.svd.plan import Finished
from graphopt.passes.svd.weights import as_array

from graphopt.backend import backend_of
from graphopt.context import Context

__all__ = ["cut", "is_faster"]

#: Seconds spent on one pair of cuts.
SECONDS = 0.3


def is_faster(made: Finished, ctx: Context, seen: Sequence[int] = ()) -> bool | None:
    """Whether the factors run faster on `ctx.target`; None where it cannot be measured.

    Args:
        made: the layer and its factors.
        ctx: target and facts.
        seen: the shape of the layer's input in a sample, for sizes the model leaves open.
    """
    layer, candidate = made.layer, made.candidate
    known: dict[str, dict[str, bool]] = ctx.facts.setdefault("svd", {}).setdefault("faster", {})
    place = _place(layer.uses[0].x, seen)
    if place is None:
        return None
    answers = known.setdefault(_key(layer, candidate.scheme, place), {})
    said = _implied(answers, candidate.ranks)
    if said is not None:
        return said
    backend = backend_of(ctx.target) if ctx.target.measured else None
    if backend is None:
        return None
    before = cut(layer, ctx.model, place)
    feeds = {"x": _feed(layer, place, ctx.seed)}
    after = before.clone()
    inner = find(after, Context(after), "svd")
    if not inner:
        return None
    replace(after, inner[0], made.stages, {}, why="svd: timed")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        a = backend.lower(before, ctx.target, Path(folder, "a.onnx"))
        b = backend.lower(after, ctx.target, Path(folder, "b.onnx"))
        timing = backend.measure(a, b, feeds, ctx.target, SECONDS)
    answer = bool(timing.ci[1] < 1.0)
    answers["x".join(map(str, candidate.ranks))] = answer
    return answer


def _implied(answers: dict[str, bool], ranks: tuple[int, ...]) -> bool | None:
    for text, answer in answers.items():
        other = tuple(int(r) for r in text.split("x"))
        if len(other) != len(ranks):
            continue
        if answer and all(r <= o for r, o in zip(ranks, other, strict=True)):
            return True
        if not answer and all(r >= o for r, o in zip(ranks, other, strict=True)):
            return False
    return None


def _key(layer: Layer, scheme: str, place: Sequence[int]) -> str:
    use = layer.uses[0]
    attributes = ",".join(
        f"{a.name}={a.value}" for a in sorted(use.node.attributes.values(), key=lambda a: a.name)
    )
    size = "x".join(map(str, place))
    form = f"{use.node.op_type}[{attributes}]{'left' if use.left else ''}"
    return f"{form} {size} by {layer.rows}x{layer.columns} {scheme}"


def _place(value: ir.Value, seen: Sequence[int]) -> list[int] | None:
    """The value's shape; of open sizes the first is 1 (the batch), others are as seen, or 1."""
    if value.shape is None:
        return list(seen) or None
    open_sizes = [None if isinstance(d, int) else d for d in value.shape]
    fallback = list(seen) if len(seen) == len(open_sizes) else [1] * len(open_sizes)
    if open_sizes and open_sizes[0] is not None:
        fallback[0] = 1
    return [d if isinstance(d, int) else f for d, f in zip(value.shape, fallback, strict=True)]


def _feed(layer: Layer, place: Sequence[int], seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    dtype = layer.uses[0].x.dtype or ir.DataType.FLOAT
    if layer.uses[0].lookup:
        return rng.integers(0, layer.rows, place).astype(dtype.numpy())
    return rng.standard_normal(place).astype(dtype.numpy())


def cut(layer: Layer, model: ir.Model, place: Sequence[int]) -> ir.Model:
    """The first node of `layer` alone, as a model from "x" of shape `place` to "y"."""
    use = layer.uses[0]
    node = use.node
    x = ir.Value(name="x", type=use.x.type, shape=ir.Shape(place))
    inputs: list[ir.Value | None] = []
    held: list[ir.Value] = []
    for k, value in enumerate(node.inputs):
        if value is use.x:
            inputs.append(x)
            continue
        tensor = None if value is None else _tensor(value, f"c{k}")
        if tensor is None:
            inputs.append(None)
            continue
        constant = ir.Value(
            name=f"c{k}",
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        inputs.append(constant)
        held.append(constant)
    only = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name="cut",
    )
    for k, value in enumerate(only.outputs):
        value.name = f"y{k}"
        value.type = node.outputs[k].type
    graph = ir.Graph(
        [x],
        [only.outputs[0]],
        nodes=[only],
        initializers=held,
        opset_imports=dict(model.graph.opset_imports),
        name="cut",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _tensor(value: ir.Value, name: str) -> ir.TensorProtocol | None:
    """The constant a value holds, mapped as it is where it is an initializer."""
    if value.producer() is None and value.const_value is not None:
        return value.const_value
    array = as_array(value)
    return None if array is None else ir.tensor(np.ascontiguousarray(array), name=name)
