"""Mixtures of experts whose matrices are packed in blocks.

    y = sum over chosen e of p_e W2_e f(W1_e x + b1_e) + b2_e   ->   the same, W1 and W2 in blocks

The shares p are a softmax over all experts, or over the chosen (normalize_routing_weights). MoE
reads its experts' matrices from one tensor [experts, rows, columns]; QMoE the same packed, with
scales and zero points beside (onnxruntime's contributed operators).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.weight_only.blocks import SIZES, Form, in_blocks
from graphopt.passes.weight_only.levels import LEVELS
from graphopt.passes.weight_only.writer import PARTS, BlockWriter

from graphopt.graph import provenance
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, remove_dead
from graphopt.graph.constants import constant_value

__all__ = ["EXPERTS", "block_of", "is_mixture", "pack_experts", "why_no_experts"]

Array = np.ndarray[Any, Any]
#: The operator, as targets list it.
EXPERTS = "com.microsoft:QMoE"
#: Where MoE reads its matrices, each before its bias.
MATRICES = (2, 4, 6)


def is_mixture(node: ir.Node) -> bool:
    """Whether it is a mixture of experts that reads floats."""
    return node.op_type == "MoE" and node.domain == "com.microsoft"


def why_no_experts(node: ir.Node, block: int | None) -> str:
    """Why its matrices stay as they are, or ""."""
    held = _matrices(node)
    if attribute(node, "use_sparse_mixer", 0):
        return "its experts are chosen by a sparse mixer"
    if not held:
        return "its experts' matrices are no floats that it alone reads"
    if block_of(node, block) is None:
        return f"blocks of {block or min(SIZES)} do not divide the rows of its experts"
    if not all(np.isfinite(w.numpy()).all() for w in held.values()):
        return "a matrix of its experts is not finite"
    return ""


def block_of(node: ir.Node, block: int | None) -> int | None:
    """The longest block, or the one asked for, that divides the rows of all its matrices."""
    rows = [w.shape.numpy()[2] for w in _matrices(node).values()]
    sizes = SIZES if block is None else (block,)
    return next((s for s in sizes if rows and all(r % s == 0 for r in rows)), None)


def pack_experts(writer: BlockWriter, node: ir.Node, form: Form) -> None:
    """Let a mixture read its experts' matrices in blocks."""
    builder = Builder(writer.model, node, writer.names)
    given = [*node.inputs, *[None] * (8 - len(node.inputs))]
    inputs, zeros = given[:2], []
    held = _matrices(node)
    for k in MATRICES:
        parts: list[ir.Value | None] = [None] * len(PARTS)
        if k in held:
            base = held[k].name or "experts"
            arrays = writer.kept(base, form, partial(_packed, held[k], form))
            parts = [builder.constant(arrays[name], f"{base}_{name}") for name in PARTS]
        inputs += [*parts[:2], given[k + 1]]
        zeros.append(parts[2])
    inputs += [*zeros, _shares(builder, node)]
    while inputs[-1] is None:
        inputs.pop()
    bits, block, _ = form
    attributes = {
        **{name: one.value for name, one in node.attributes.items()},
        "expert_weight_bits": bits,
        "block_size": block,
        "weights_prepacked": 0,
        "accuracy_level": LEVELS[writer.ctx.target.int8 is not None],
    }
    made = builder.node("QMoE", inputs, attributes, domain="com.microsoft").outputs[0]
    builder.take_over(node.outputs[0], made)
    provenance.derive(builder.nodes, [node], writer.ctx.pass_name)
    remove_dead([node])


def _shares(builder: Builder, node: ir.Node) -> ir.Value | None:
    """What the chosen experts' outputs are weighted by, where their sum is not to be 1.

    QMoE takes the softmax over the chosen alone, unless weights are given.
    """
    if attribute(node, "normalize_routing_weights", 0):
        return None
    return builder.node("Softmax", [node.inputs[1]], {"axis": -1}).outputs[0]


def _matrices(node: ir.Node) -> dict[int, ir.TensorProtocol]:
    """The matrices [experts, rows, columns] by input; none if one is no floats of its own."""
    found: dict[int, ir.TensorProtocol] = {}
    for k in MATRICES:
        value = node.inputs[k] if k < len(node.inputs) else None
        if value is None:
            continue
        tensor = constant_value(value)
        if tensor is None or len(value.uses()) > 1 or len(tensor.shape) != 3:
            return {}
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return {}
        found[k] = tensor
    return found


def _packed(tensor: ir.TensorProtocol, form: Form) -> list[Array]:
    """Integers [experts, rows, bytes], scales and zero points [experts, rows, blocks or bytes]."""
    experts = []
    for w in tensor.numpy():
        integers, *others = in_blocks(w, form, w.dtype).packed()
        experts.append((integers.reshape(len(w), -1), *others))
    return [np.stack(arrays) for arrays in zip(*experts, strict=True)]
