"""Shapes and shape data of the operators that measure, rearrange, repeat and select."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import values as shape_data
from graphopt.analyses.shapes.facts import DATA_LIMIT, Fact, Shapes
from graphopt.analyses.shapes.rules import Facts, axes_of, broadcast, product, unknown_sizes
from graphopt.analyses.shapes.symbolic import Dim, Expr, floordiv, maximum, nonnegative
from graphopt.graph.attributes import attribute

__all__ = ["OPERATORS"]

INT64 = ir.DataType.INT64
#: Policies of Resize that take the sizes as they are.
PLAIN = (None, "stretch")


def _shape(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    dims = ins[0].dims
    if dims is None:
        return [Fact(INT64, (shapes.fresh(),))]
    cut = dims[attribute(node, "start", 0) : attribute(node, "end", len(dims))]
    return [Fact(INT64, (len(cut),), shape_data.pack(cut, INT64))]


def _size(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    dims = ins[0].dims
    data = None if dims is None else shape_data.pack(product(dims), INT64)
    return [Fact(INT64, (), data)]


def _squeeze(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact] | None:
    dims = ins[0].dims
    if dims is None:
        return [Fact(ins[0].dtype)]
    axes = axes_of(node, ins, 1)
    if axes is None:
        if len(node.inputs) > 1 or not all(isinstance(d, int) for d in dims):
            return [Fact(ins[0].dtype)]
        axes = [k for k, d in enumerate(dims) if d == 1]
    gone = {a % len(dims) for a in axes} if dims else set()
    left = tuple(d for k, d in enumerate(dims) if k not in gone)
    return [Fact(ins[0].dtype, left, shape_data.reshape(ins[0], left))]


def _unsqueeze(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    axes = axes_of(node, ins, 1)
    dims = ins[0].dims
    if dims is None or axes is None:
        return [Fact(ins[0].dtype)]
    rank = len(dims) + len(axes)
    new = {a % rank for a in axes}
    left = iter(dims)
    out = tuple(1 if k in new else next(left) for k in range(rank))
    return [Fact(ins[0].dtype, out, shape_data.reshape(ins[0], out))]


def _reshape(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    x, target = ins[0], ins[1].data
    if target is None:
        return [Fact(x.dtype, unknown_sizes(shapes, ins[1].dims[0] if ins[1].dims else None))]
    keep_zero = attribute(node, "allowzero", 0) == 1
    dims: list[Dim | None] = []
    for k, d in enumerate(target.ravel().tolist()):
        if isinstance(d, int) and d == 0 and not keep_zero:
            dims.append(x.dims[k] if x.dims is not None and k < len(x.dims) else shapes.fresh())
        elif isinstance(d, int) and d == -1:
            dims.append(None)
        else:
            dims.append(d if nonnegative(d) else shapes.fresh())
    if None in dims:
        known = product([d for d in dims if d is not None])
        left = None if x.dims is None else floordiv(product(x.dims), known)
        sure = left is not None and nonnegative(left)
        dims = [(left if sure else shapes.fresh()) if d is None else d for d in dims]
    out = tuple(d for d in dims if d is not None)
    return [Fact(x.dtype, out, shape_data.reshape(x, out))]


def _flatten(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    dims = ins[0].dims
    if dims is None:
        return [Fact(ins[0].dtype, (shapes.fresh(), shapes.fresh()))]
    axis = attribute(node, "axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return [Fact(ins[0].dtype, (product(dims[:axis]), product(dims[axis:])))]


def _transpose(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    dims = ins[0].dims
    perm = attribute(node, "perm")
    if dims is None:
        rank = None if perm is None else len(perm)
        dims = None if rank is None else tuple(shapes.fresh() for _ in range(rank))
        return [Fact(ins[0].dtype, dims)]
    order = list(perm) if perm is not None else list(range(len(dims)))[::-1]
    data = None if ins[0].data is None else ins[0].data.transpose(order)
    return [Fact(ins[0].dtype, tuple(dims[p] for p in order), data)]


def _expand(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    x, target = ins[0], ins[1].data
    if target is None or not all(isinstance(d, int) or nonnegative(d) for d in target.tolist()):
        return [Fact(x.dtype)]
    dims = broadcast(shapes, x.dims, tuple(target.tolist()))
    return [Fact(x.dtype, dims, shape_data.expand(x, dims))]


def _constant_of_shape(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    tensor = attribute(node, "value")
    value = np.zeros(1, np.float32) if tensor is None else tensor.numpy()
    dtype = ir.DataType.FLOAT if tensor is None else tensor.dtype
    target = ins[0].data
    if target is None:
        return [Fact(dtype, unknown_sizes(shapes, ins[0].dims[0] if ins[0].dims else None))]
    dims = tuple(d if nonnegative(d) else shapes.fresh() for d in target.tolist())
    fill = Fact(dtype, (), value.reshape(()))
    return [Fact(dtype, dims, shape_data.expand(fill, dims))]


def _concat(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    known = [f.dims for f in ins if f.dims is not None]
    if not known:
        return [Fact(ins[0].dtype)]
    axis = attribute(node, "axis") % len(known[0])
    out: list[Dim] = []
    for k in range(len(known[0])):
        at = [d[k] for d in known]
        if k == axis:
            out.append(sum(at, start=0) if len(known) == len(ins) else shapes.fresh())
        else:
            out.append(next((d for d in at if isinstance(d, int)), at[0]))
    data = [f.data for f in ins if f.data is not None]
    joined = shape_data.concat(data, axis) if len(data) == len(ins) else None
    return [Fact(ins[0].dtype, tuple(out), joined)]


def _split(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    x, count = ins[0], len(node.outputs)
    if x.dims is None:
        return [Fact(x.dtype)] * count
    axis = attribute(node, "axis", 0) % len(x.dims)
    sizes = attribute(node, "split")
    if sizes is None and len(ins) > 1 and node.inputs[1] is not None:
        sizes = None if ins[1].data is None else ins[1].data.tolist()
        sizes = [shapes.fresh() for _ in range(count)] if sizes is None else sizes
    elif sizes is None and count == 1:
        sizes = [x.dims[axis]]
    elif sizes is None:
        whole = x.dims[axis]
        each = floordiv(whole + (count - 1), count)
        if isinstance(whole, int) and isinstance(each, int):
            sizes = [max(0, min(each, whole - each * k)) for k in range(count)]
        else:
            sizes = [shapes.fresh() for _ in range(count)]
    parts: list[Fact] = []
    start = 0
    for size in sizes:
        dims = (*x.dims[:axis], size, *x.dims[axis + 1 :])
        data = None
        if x.data is not None and all(isinstance(s, int) for s in sizes):
            data = x.data.take(range(start, start + size), axis)
            start += size
        parts.append(Fact(x.dtype, dims, data))
    return parts


def _gather(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    x, index = ins
    if x.dims is None or index.dims is None:
        return [Fact(x.dtype)]
    axis = attribute(node, "axis", 0) % len(x.dims)
    data = None
    if x.data is not None and index.concrete is not None:
        size = x.data.shape[axis]
        if all(-size <= i < size for i in index.concrete.ravel().tolist()):
            data = np.asarray(x.data.take(index.concrete, axis))
    return [Fact(x.dtype, (*x.dims[:axis], *index.dims, *x.dims[axis + 1 :]), data)]


def _range(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    ends = [f.data.ravel().tolist()[0] for f in ins if f.data is not None]
    length: Dim = shapes.fresh()
    data = None
    if len(ends) < 3:
        return [Fact(ins[0].dtype, (length,))]
    start, limit, delta = ends
    if not any(isinstance(e, Expr) for e in ends):
        length = max(int(np.ceil((limit - start) / delta)), 0) if delta else length
        if isinstance(length, int) and length <= DATA_LIMIT and ins[0].dtype is not None:
            data = (start + delta * np.arange(length)).astype(ins[0].dtype.numpy())
    elif delta == 1:
        length = maximum(limit - start, 0)
    return [Fact(ins[0].dtype, (length,), data)]


def _tile(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    x, times = ins
    if x.dims is None or times.data is None:
        return [Fact(x.dtype, None if x.dims is None else tuple(shapes.fresh() for _ in x.dims))]
    dims = tuple(d * t for d, t in zip(x.dims, times.data.tolist(), strict=True))
    return [Fact(x.dtype, tuple(d if nonnegative(d) else shapes.fresh() for d in dims))]


def _pad(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact] | None:
    """Sizes grow by the pads on either side."""
    x, given = ins[0], attribute(node, "pads")
    if given is None and len(ins) > 1 and ins[1].concrete is not None:
        given = ins[1].concrete.ravel().tolist()
    if x.dims is None or given is None or min(given, default=0) < 0:
        return None
    axes = list(range(len(x.dims)))
    if len(ins) > 3 and node.inputs[3] is not None:
        if ins[3].concrete is None:
            return None
        axes = [int(a) % len(axes) for a in ins[3].concrete.ravel()]
    if len(given) != 2 * len(axes):
        return None
    dims = list(x.dims)
    for k, axis in enumerate(axes):
        dims[axis] = dims[axis] + int(given[k]) + int(given[k + len(axes)])
    return [Fact(x.dtype, tuple(dims))]


def _resize(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact] | None:
    """Sizes that are given, or that whole numbers scale."""
    x, scales = ins[0], ins[min(2, len(ins) - 1)].concrete
    sizes = ins[3].data if len(ins) > 3 else None
    told = sizes if sizes is not None and sizes.size else scales
    if x.dims is None or told is None or told.shape != (len(x.dims),):
        return None
    if attribute(node, "axes") or attribute(node, "keep_aspect_ratio_policy") not in PLAIN:
        return None
    if told is sizes:
        return [
            Fact(x.dtype, tuple(d if nonnegative(d) else shapes.fresh() for d in told.tolist()))
        ]
    crops = attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    if crops or any(s != int(s) for s in told):
        return None
    return [Fact(x.dtype, tuple(d * int(s) for d, s in zip(x.dims, told, strict=True)))]


OPERATORS = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": shape_data.slice_,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
