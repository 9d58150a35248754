"""Moving elements: reshapes, slices, concatenations, gathers, padding, resizing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import codes
from graphopt.backends.litert.windows import last, pad
from graphopt.backends.litert.writer import Lower, Refused, Writer, plain_axes

__all__ = ["MOVING"]


def reshape(w: Writer, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze -> RESHAPE"""
    x, shape = w.read(node.inputs[0]), w.shape(node.outputs[0])
    w.give(node.outputs[0], w.reshape(x, shape))


def transpose(w: Writer, node: ir.Node) -> None:
    """Transpose(x): x, its axes by other names"""
    value = node.inputs[0]
    assert value is not None
    rank = len(w.shape(value))
    order = w.attribute(node, "perm") or list(reversed(range(rank)))
    w.rename(node.outputs[0], value, order)


def concat(w: Writer, node: ir.Node) -> None:
    """Concat(a, b, ...) -> CONCATENATION"""
    rank = len(w.shape(node.outputs[0]))
    axis = w.attribute(node, "axis") % rank
    values = [v for v in node.inputs if v is not None and 0 not in w.shape(v)]
    moved = next((w.axes(v) for v in values if w.axes(v) != plain_axes(rank)), plain_axes(rank))
    operands = [w.read(v, moved) for v in values]
    if w.grid is not None:  # the kernel takes operands on one grid only
        operands = [w.requantize(t, w.grid) for t in operands]
    shape = w.shape(node.outputs[0])
    out = [shape[k] for k in moved]
    at = moved.index(axis)
    kind = operands[0].dtype if w.grid is None else "float32"
    made = w.emit("CONCATENATION", operands, out, "Concatenation", kind, axis=at)
    w.give(node.outputs[0], made, moved)


def split(w: Writer, node: ir.Node) -> None:
    """Split(x) -> one SLICE per part"""
    value = node.inputs[0]
    assert value is not None
    axes = w.axes(value)
    axis = w.attribute(node, "axis") % len(axes)
    x, at = w.read(value, axes), axes.index(axis)
    start = 0
    for out in node.outputs:
        size = w.shape(out)[axis]
        if out.uses() or out.is_graph_output():
            begin = [start if k == at else 0 for k in range(x.rank)]
            shape = [size if k == at else d for k, d in enumerate(x.shape)]
            given = [x, w.numbers(begin), w.numbers(shape)]
            w.give(out, w.moved("SLICE", given, shape, "Slice"), axes)
        start += size


def slices(w: Writer, node: ir.Node) -> None:
    """Slice(x) -> STRIDED_SLICE"""
    x, axes = w.operand(node)
    starts, ends = w.integers(node, 1) or [], w.integers(node, 2) or []
    chosen = w.integers(node, 3) or list(range(len(starts)))
    steps = w.integers(node, 4) or [1] * len(starts)
    begin, end, stride = [0] * x.rank, list(x.shape), [1] * x.rank
    mask = 0
    for start, stop, axis, step in zip(starts, ends, chosen, steps, strict=True):
        at = axes.index(axis % x.rank)
        low, high, by = slice(start, stop, step).indices(x.shape[at])
        begin[at], end[at], stride[at] = low, high, by
        mask |= (1 << at) if high < 0 else 0  # backwards to the first
    shape = [len(range(*t)) for t in zip(begin, end, stride, strict=True)]
    given = [x, *(w.numbers(t) for t in (begin, end, stride))]
    made = w.moved("STRIDED_SLICE", given, shape, "StridedSlice", endMask=mask)
    w.give(node.outputs[0], made, axes)


def gather(w: Writer, node: ir.Node) -> None:
    """Gather(x, i) -> GATHER"""
    value, indices = node.inputs[0], node.inputs[1]
    assert value is not None
    x, axis = w.read(value), w.attribute(node, "axis") % len(w.shape(value))
    known = w.array(indices)
    if known is not None:
        at = w.file.constant((known % x.shape[axis]).astype(np.int32))
    else:
        at = w.read(indices)
    shape = w.shape(node.outputs[0])
    w.give(node.outputs[0], w.moved("GATHER", [x, at], shape, "Gather", axis=axis))


def gather_nd(w: Writer, node: ir.Node) -> None:
    """GatherND(x, i) -> GATHER_ND; of booleans through bytes"""
    value = node.inputs[0]
    assert value is not None
    x, known = w.read(value), w.array(node.inputs[1])
    if w.attribute(node, "batch_dims") or known is None:
        raise Refused("its indices are computed, or it has batch axes")
    sizes = np.array(x.shape[: known.shape[-1]])
    at = w.file.constant((known % sizes).astype(np.int32))
    shape = w.shape(node.outputs[0])
    if x.dtype != "bool":
        w.give(node.outputs[0], w.moved("GATHER_ND", [x, at], shape, "GatherNd"))
        return
    as_bytes = w.emit("CAST", [x], x.shape, "Cast", "int32")
    found = w.moved("GATHER_ND", [as_bytes, at], shape, "GatherNd")
    w.give(node.outputs[0], w.emit("CAST", [found], shape, "Cast", "bool"))


def expand(w: Writer, node: ir.Node) -> None:
    """Expand(x) -> BROADCAST_TO"""
    value = node.inputs[0]
    assert value is not None
    shape = w.shape(node.outputs[0])
    x = w.read(value)
    if x.shape != shape:
        x = w.moved("BROADCAST_TO", [x, w.numbers(shape)], shape, "BroadcastTo")
    w.give(node.outputs[0], x)


def tile(w: Writer, node: ir.Node) -> None:
    """Tile(x) -> TILE"""
    x, times = w.read(node.inputs[0]), w.integers(node, 1) or []
    given = [x, w.numbers(times)]
    w.give(node.outputs[0], w.moved("TILE", given, w.shape(node.outputs[0]), "Tile"))


def padding(w: Writer, node: ir.Node) -> None:
    """Pad(x) -> PAD, PADV2 or MIRROR_PAD"""
    value = node.inputs[0]
    assert value is not None
    axes = w.axes(value)
    x, pads = w.read(value, axes), w.integers(node, 1) or []
    chosen = [a % x.rank for a in w.integers(node, 3) or range(x.rank)]
    before, after = [0] * x.rank, [0] * x.rank
    for k, axis in enumerate(chosen):
        before[axes.index(axis)], after[axes.index(axis)] = pads[k], pads[k + len(chosen)]
    if min(*before, *after, 0) < 0:
        raise Refused("it pads by less than nothing")
    mode = w.attribute(node, "mode")
    if mode == "reflect":
        shape = [b + d + a for b, d, a in zip(before, x.shape, after, strict=True)]
        around = w.file.constant(np.array([*zip(before, after, strict=True)], np.int32))
        made = w.moved("MIRROR_PAD", [x, around], shape, "MirrorPad", mode=0)
    elif mode == "constant":
        filler = w.array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        zero = filler is None or not filler.reshape(-1)[0]
        if not zero and x.grid is not None:
            raise Refused("it pads integers with another number than 0")
        made = pad(w, x, before, after, None if zero else w.read(node.inputs[2]))
    else:
        raise Refused(f"it pads by '{mode}'")
    w.give(node.outputs[0], made, axes)


def resize(w: Writer, node: ir.Node) -> None:
    """Resize(x) -> RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR"""
    value = node.inputs[0]
    assert value is not None
    shape, before = w.shape(node.outputs[0]), w.shape(value)
    if len(shape) != 4 or shape[:2] != before[:2]:
        raise Refused("it resizes other axes than rows and columns")
    mode = w.attribute(node, "mode", "nearest")
    where = w.attribute(node, "coordinate_transformation_mode", "half_pixel")
    flags = {
        "alignCorners": where == "align_corners",
        "halfPixelCenters": where in ("half_pixel", "pytorch_half_pixel"),
    }
    if mode not in ("nearest", "linear") or where == "tf_crop_and_resize":
        raise Refused(f"it resizes by '{mode}', '{where}'")
    if w.attribute(node, "antialias", 0):
        raise Refused("it resizes with antialiasing")
    code = "RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR"
    options = "ResizeBilinear" if mode == "linear" else "ResizeNearestNeighbor"
    given = [w.read(value, last(4)), w.numbers(shape[2:])]
    out = [shape[k] for k in last(4)]
    w.give(node.outputs[0], w.moved(code, given, out, options, **flags), last(4))


def depth_to_space(w: Writer, node: ir.Node) -> None:
    """DepthToSpace(x), SpaceToDepth(x): a reshape, a transposition, a reshape"""
    value = node.inputs[0]
    assert value is not None
    n, c, rows, columns = w.shape(value)
    b = w.attribute(node, "blocksize")
    x = w.read(value)
    if node.op_type == "SpaceToDepth":
        x = w.reshape(x, (n, c, rows // b, b, columns // b, b))
        x = w.transpose(x, (0, 3, 5, 1, 2, 4))
    elif w.attribute(node, "mode") == "DCR":
        x = w.transpose(w.reshape(x, (n, b, b, c // b**2, rows, columns)), (0, 3, 4, 1, 5, 2))
    else:
        x = w.transpose(w.reshape(x, (n, c // b**2, b, b, rows, columns)), (0, 1, 4, 2, 5, 3))
    w.give(node.outputs[0], w.reshape(x, w.shape(node.outputs[0])))


def cumulative(w: Writer, node: ir.Node) -> None:
    """CumSum(x, axis) -> CUMSUM"""
    x, axis = w.read(node.inputs[0]), w.integers(node, 1) or [0]
    given = {k: bool(w.attribute(node, k)) for k in ("exclusive", "reverse")}
    operands = [x, w.file.constant(np.array(axis[0] % x.rank, np.int32))]
    w.give(node.outputs[0], w.moved("CUMSUM", operands, x.shape, "Cumsum", **given))


def extreme(w: Writer, node: ir.Node) -> None:
    """ArgMax(x), ArgMin(x) -> ARG_MAX, ARG_MIN, of the first of equal ones"""
    if w.attribute(node, "select_last_index"):
        raise Refused("it selects the last of equal ones")
    value = node.inputs[0]
    assert value is not None
    axis = w.attribute(node, "axis") % len(w.shape(value))
    kind = "Max" if node.op_type == "ArgMax" else "Min"
    x = w.read(value)
    shape = [d for k, d in enumerate(x.shape) if k != axis]
    given = {"outputType": codes("TensorType")["INT64"]}
    at = w.file.constant(np.array(axis, np.int32))
    made = w.emit(f"ARG_{kind.upper()}", [x, at], shape, f"Arg{kind}", "int64", **given)
    w.give(node.outputs[0], w.reshape(made, w.shape(node.outputs[0])))


MOVING: dict[str, Lower] = {
    "ArgMax": extreme,
    "ArgMin": extreme,
    "Concat": concat,
    "CumSum": cumulative,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "GatherND": gather_nd,
    "Pad": padding,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slices,
    "SpaceToDepth": depth_to_space,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
