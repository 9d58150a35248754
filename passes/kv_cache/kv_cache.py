"""Key-value cache quantization, the pass: keys and values are kept in 8-bit integers.

    present = Concat(past, k)    ->    present = Concat(past, round(k / s)),    k ~ s present

with one scale s for each channel of each head, from the largest number that it held on samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.context import Context
from graphopt.execution.caches import CACHES, quantized_caches
from graphopt.execution.runtime import run_each
from graphopt.graph.building import Builder, Names
from graphopt.pass_ import Pass

__all__ = ["KvCache"]

Array = np.ndarray[Any, Any]

#: The operator whose cache may be of integers, as targets that have it list it.
QUANTIZED = "com.microsoft:GroupQueryAttention(int8)"
#: Runs of samples whose keys and values are looked at.
RUNS = 16
#: The largest number that fits over the largest of the samples: of normal numbers, clipping what is
#: beyond the largest of 256 errs by .029 of their spread, a quarter more room and rounding by .011.
HEADROOM = 1.25
#: Inputs of the node: the last are the scales of keys and of values.
INPUTS = 14


@dataclass(frozen=True)
class KvCache(Pass):
    """Keep keys and values of a decoder's cache in 8-bit integers, a quarter of float32's memory.

    It changes the model's interface: inputs and outputs that hold the cache become int8, and who
    runs the model allocates them so. For targets that have the operator (see `graphopt targets`)
    and models with GroupQueryAttention.
    """

    lossy: ClassVar[bool] = True
    speeds_up: ClassVar[bool] = False

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Change caches in place; returns how many nodes keep theirs in integers."""
        if QUANTIZED not in ctx.target.operators:
            ctx.note(f"{ctx.target.name} has no attention that keeps its cache in integers.")
            return 0
        known = quantized_caches(model)
        wanted = []
        for node in model.graph:
            if node.op_type != "GroupQueryAttention":
                continue
            reason = _why_not(node, known)
            if reason:
                ctx.refuse(self, node, f"{reason}: it stays as it is")
            elif ctx.edit(self, node):
                wanted.append(node)
        if not wanted:
            return ctx.nothing("no attention keeps a cache of floats")
        largest = _largest(model, ctx, wanted)
        names = Names(model)
        for node in wanted:
            _quantize(Builder(model, node, names), node, largest)
        return len(wanted)


def _why_not(node: ir.Node, known: dict[str, Array]) -> str:
    """Why a node's cache stays as it is, or ""."""
    if len(node.inputs) < 5 or len(node.outputs) < 3:
        return "it has no cache"
    for past, present, _ in CACHES:
        given, made = node.inputs[past], node.outputs[present]
        if given is None or not given.is_graph_input() or not made.is_graph_output():
            return "its cache is neither an input nor an output of the model"
        if given.name in known:
            return "its cache is one of integers already"
        if len(given.uses()) > 1 or made.uses():
            return "its cache is read elsewhere too"
        if given.shape is None or not isinstance(given.shape[3], int):
            return "its cache has no declared size"
    return ""


def _largest(model: ir.Model, ctx: Context, nodes: Sequence[ir.Node]) -> dict[str, Array]:
    """The largest of each channel [heads, size] of what each cache's output takes in on samples."""
    if ctx.samples is None or ctx.samples.synthetic:
        ctx.note("the ranges of keys and values come from random tokens; give --samples")
    feeds = list(islice(ctx.samples or (), RUNS))
    pairs = {
        _name(n.outputs[made]): _name(n.inputs[past]) for n in nodes for past, made, _ in CACHES
    }
    found: dict[str, Array] = {}
    for feed, outputs in zip(feeds, run_each(model.clone(), feeds, optimize=True), strict=True):
        for name, past in pairs.items():
            new = outputs[name][:, :, feed[past].shape[2] :]
            top = np.abs(new).max(axis=(0, 2), initial=0).astype(np.float32)
            found[name] = np.maximum(found.get(name, top), top)
    return found


def _quantize(builder: Builder, node: ir.Node, largest: dict[str, Array]) -> None:
    node.resize_inputs(INPUTS)
    for (past, present, scale), kind in zip(CACHES, "kv", strict=True):
        made = node.outputs[present]
        top = largest[_name(made)]
        scales = np.where(top > 0, top * np.float32(HEADROOM / 127), np.float32(1)).reshape(-1)
        node.replace_input_with(scale, builder.constant(scales, f"{made.name}_scale"))
        node.attributes[f"{kind}_quant_type"] = ir.AttrString(f"{kind}_quant_type", "PER_CHANNEL")
        for value in (node.inputs[past], made):
            assert value is not None
            value.type = ir.TensorType(ir.DataType.INT8)
    node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None  # inputs and outputs of the model have one
    return value.name
