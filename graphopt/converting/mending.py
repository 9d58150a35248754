"""What converters write wrongly, set right: pooling over more axes than three, 16 bits, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names, remove_dead

__all__ = ["mend_16_bits", "mend_pools", "mend_shape"]

#: Axes that runtimes pool over.
MOST = 3


def mend_pools(model: ir.Model) -> list[str]:
    """Pooling (1, 1, N, H, W, C) over all but the first two: over H and W; notes of what was done.

    JAX's `reduce_window` is written so (jax2onnx 0.17): windows and strides of 1 along N and C.
    """
    names, mended = Names(model), 0
    for node in [n for n in model.graph if n.op_type in ("MaxPool", "AveragePool")]:
        kernel = list(attribute(node, "kernel_shape"))
        n = len(kernel)
        strides = list(attribute(node, "strides") or [1] * n)
        pads = list(attribute(node, "pads") or [0] * 2 * n)
        given = list(zip(kernel, strides, pads[:n], pads[n:], strict=True))
        wide = [k for k in range(n) if given[k] != (1, 1, 0, 0)]
        others = [k for k in range(n) if k not in wide]
        if n <= MOST or len(wide) > MOST or len(others) != 2 or len(node.outputs) > 1:
            continue
        op = Builder(model, node, names)
        order = [0, 1, *(k + 2 for k in others + wide)]
        ones = op.constant(np.array([0, 1], np.int64), f"{node.name}/ones")
        x = op.Squeeze(op.Transpose(node.inputs[0], perm=order), ones)
        y = op.again(
            node,
            [x],
            kernel_shape=[kernel[k] for k in wide],
            strides=[strides[k] for k in wide],
            pads=[pads[k] for k in wide] + [pads[k + n] for k in wide],
            dilations=None,
        )
        back = [int(k) for k in np.argsort(order)]
        made = op.Transpose(op.Unsqueeze(y, ones), perm=back)
        op.take_over(node.outputs[0], made)
        remove_dead([node])
        mended += 1
    return [f"{mended} pools over more than {MOST} axes pool over fewer."] if mended else []


#: Since when the standard's Q and DQ take 16 bits.
WIDE = 21


def mend_16_bits(model: ir.Model) -> list[str]:
    """Let rounding to 16 bits be the runtime's own before opset 21; a note of what was done.

    tf2onnx 1.17 writes the standard's operators for a .tflite file with activations of 16 bits.
    """
    if (model.graph.opset_imports.get("") or 0) >= WIDE:
        return []
    mended = 0
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain == "":
            types = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}
            if types & {ir.DataType.INT16, ir.DataType.UINT16}:
                node.domain = "com.microsoft"
                model.graph.opset_imports.setdefault(node.domain, 1)
                mended += 1
    return [f"{mended} operators round to 16 bits as ONNX Runtime does."] if mended else []


def mend_shape(value: ir.Value, made: np.ndarray[Any, Any]) -> str:
    """Let `value` declare no other shape than it was seen to have; a note of what was wrong.

    skl2onnx 1.20 declares one number of a tree or a forest that has several.
    """
    was = value.shape
    if was is None or (
        len(was) == made.ndim
        and all(d == n for d, n in zip(was, made.shape, strict=True) if isinstance(d, int))
    ):
        return ""
    if len(was) != made.ndim:
        value.shape = ir.Shape([None] * made.ndim)
    else:
        pairs = zip(was, made.shape, strict=True)
        value.shape = ir.Shape([None if isinstance(d, int) and d != n else d for d, n in pairs])
    return f"Output {value.name} was declared {was} and is of shape {list(made.shape)}."
