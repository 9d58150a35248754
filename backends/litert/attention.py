"""Attention written out: two products and a softmax."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Tensor
from graphopt.backends.litert.writer import Lower, Refused, Writer

__all__ = ["ATTENTION"]


def attention(w: Writer, node: ir.Node) -> None:
    """Attention(q, k, v, m) -> Softmax(scale q k^T + m) v"""
    if any(v is not None for v in node.inputs[4:]) or _wanted(node) > 1:
        raise Refused("it has caches, or gives its scores")
    if w.attribute(node, "softcap", 0.0):
        raise Refused("it caps its scores")
    heads, groups = (w.attribute(node, f"{k}_num_heads", 0) for k in ("q", "kv"))
    q, k, v = (
        _by_head(w, x, n) for x, n in zip(node.inputs, (heads, groups, groups), strict=False)
    )
    if q.shape[1] != k.shape[1]:
        raise Refused("its queries share keys")
    scale = w.attribute(node, "scale", None) or 1 / math.sqrt(q.shape[-1])
    shape = (*q.shape[:3], k.shape[2])
    scores = w.emit("BATCH_MATMUL", [q, k], shape, "BatchMatMul", adjY=True)
    scores = w.emit("MUL", [scores, w.floats(scale)], shape, "Mul")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    least = w.floats(np.finfo(np.float32).min)
    if mask is not None:
        given = w.read(mask)
        if given.dtype == "bool":
            keep = [given, w.floats(0.0), least]
            given = w.emit("SELECT_V2", keep, given.shape, "SelectV2")
        scores = w.emit("ADD", [scores, given], shape, "Add")
    if w.attribute(node, "is_causal", 0):
        ahead = np.triu(np.full(shape[2:], np.finfo(np.float32).min), 1)
        scores = w.emit("ADD", [scores, w.floats(ahead)], shape, "Add")
    weights = w.emit("SOFTMAX", [scores], shape, "Softmax", beta=1.0)
    out = (*q.shape[:3], v.shape[-1])
    made = w.emit("BATCH_MATMUL", [weights, v], out, "BatchMatMul")
    if len(w.shape(node.outputs[0])) == 3:
        made = w.reshape(w.transpose(made, (0, 2, 1, 3)), w.shape(node.outputs[0]))
    w.give(node.outputs[0], made)


def _by_head(w: Writer, value: ir.Value | None, heads: int) -> Tensor:
    """Batch, head, position, channel."""
    x = w.read(value)
    if x.rank == 4:
        return x
    batch, length, width = x.shape
    return w.transpose(w.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def _wanted(node: ir.Node) -> int:
    return len([o for o in node.outputs if o.uses() or o.is_graph_output()])


ATTENTION: dict[str, Lower] = {"Attention": attention}
