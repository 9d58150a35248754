"""What each operator does to shapes and shape data: one function per operator, in one table.

A function takes the node, the facts of its inputs and the analysis (for fresh unknowns) and returns
the facts of the outputs, or None to leave the node to ONNX's own inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses import shape_data, shape_extensions
from graphopt.analyses.shape_by_onnx import by_onnx
from graphopt.analyses.shapes import DATA_LIMIT, Fact, Shapes, small_data
from graphopt.analyses.symbolic import Dim, Expr, capped, floordiv, maximum, nonnegative
from graphopt.evaluate import deterministic, quick
from graphopt.pattern import constant_value

__all__ = ["OPERATORS", "broadcast", "infer_node"]

Facts = Sequence[Fact]
Operator = Callable[[ir.Node, Facts, Shapes], "list[Fact] | None"]
INT64 = ir.DataType.INT64


def infer_node(node: ir.Node, inputs: Facts, shapes: Shapes) -> list[Fact]:
    """Facts of a node's outputs; unknown where nothing is sure."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == "":
        function = OPERATORS.get(node.op_type)
    else:
        function = shape_extensions.OPERATORS.get((domain, node.op_type))
    facts = None if function is None else function(node, inputs, shapes)
    if facts is None:
        facts = by_onnx(node, domain, inputs, shapes)
    if len(facts) == 1 and facts[0].data is None and inputs and _small(facts[0]):
        return [_computed(node, inputs, facts[0])]
    return facts


def _small(fact: Fact) -> bool:
    size = None if fact.dims is None else product(fact.dims)
    return isinstance(size, int) and size <= DATA_LIMIT


def _computed(node: ir.Node, inputs: Facts, fact: Fact) -> Fact:
    """With the data of an operator on small numbers, floating point included."""
    given = [f.concrete for f in inputs]
    if any(g is None and v is not None for g, v in zip(given, node.inputs, strict=True)):
        return fact
    made = quick(node, given) if deterministic(node) else None
    if made is None or made[0].shape != fact.dims:
        return fact
    return Fact(fact.dtype, fact.dims, made[0])


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, or `default`."""
    have = node.attributes.get(name)
    return default if have is None else have.value


def broadcast(shapes: Shapes, *operands: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """The shape of an elementwise operator's result (NumPy's rule, on symbols too)."""
    if any(o is None for o in operands):
        return None
    known = [o for o in operands if o is not None]
    rank = max(len(o) for o in known)
    result: list[Dim] = []
    for k in range(-rank, 0):
        dims = {o[k] for o in known if len(o) >= -k} - {1}
        if len(dims) > 1:  # min(n, 512) beside n: they agree, or the model fails
            dims = {d for d in dims if not any(capped(d, n) for n in dims)}
        sizes = [d for d in dims if isinstance(d, int)]
        if not dims:
            result.append(1)
        elif sizes:
            result.append(sizes[0])
        elif len(dims) == 1:
            result.append(dims.pop())
        else:
            result.append(shapes.fresh())
    return tuple(result)


def _elementwise(result: ir.DataType | None = None) -> Operator:
    def infer(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
        given = [f for f, v in zip(ins, node.inputs, strict=True) if v is not None]
        first = given[1] if node.op_type == "Where" and len(given) > 1 else given[0]
        dims = broadcast(shapes, *(f.dims for f in given))
        dtype = result if result is not None else first.dtype
        return [Fact(dtype, dims, shape_data.compute(node, given, dtype, dims, shapes))]

    return infer


def _same(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    """Unary, type and shape kept."""
    return [Fact(ins[0].dtype, ins[0].dims, type=ins[0].type)]


def _identity(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    return [ins[0]]


def _constant(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact] | None:
    tensor = constant_value(node.outputs[0])
    if tensor is None:
        return None
    return [Fact(tensor.dtype, tuple(int(d) for d in tensor.shape), small_data(tensor))]  # type: ignore[arg-type]


def _cast(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    to = ins[1].dtype if node.op_type == "CastLike" else ir.DataType(attribute(node, "to"))
    return [Fact(to, ins[0].dims, shape_data.cast(ins[0], to))]


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


def product(dims: Sequence[Dim]) -> Dim:
    """The number of elements of a shape."""
    return prod(dims, start=1)


def axes_of(node: ir.Node, ins: Facts, k: int) -> list[int] | None:
    """The `axes` of a node: its attribute or its input `k`; None where absent or not constant."""
    given = attribute(node, "axes")
    if given is None and k < len(ins) and ins[k].concrete is not None:
        given = ins[k].concrete
    return None if given is None else [int(a) for a in np.ravel(given)]


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
        rank = ins[1].dims[0] if ins[1].dims else None
        if isinstance(rank, int):
            return [Fact(x.dtype, tuple(shapes.fresh() for _ in range(rank)))]
        return [Fact(x.dtype)]
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
        rank = ins[0].dims[0] if ins[0].dims else None
        if isinstance(rank, int):
            return [Fact(dtype, tuple(shapes.fresh() for _ in range(rank)))]
        return [Fact(dtype)]
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


def _matmul(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    a, b = ins[0].dims, ins[1].dims
    if a is None or b is None or not a or not b:
        return [Fact(ins[0].dtype)]
    batch = broadcast(shapes, a[:-2], b[:-2]) or ()
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return [Fact(ins[0].dtype, (*batch, *rows, *columns))]


def _reduce(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    x = ins[0]
    if x.dims is None:
        return [Fact(x.dtype)]
    rank = len(x.dims)
    axes = axes_of(node, ins, 1)
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    if axes is None and given:
        return [Fact(x.dtype)]
    if not axes:
        noop = attribute(node, "noop_with_empty_axes", 0)
        axes = [] if noop else list(range(rank))
    gone = {a % rank for a in axes} if rank else set()
    keep = attribute(node, "keepdims", 1)
    dims = tuple(1 if k in gone else d for k, d in enumerate(x.dims) if keep or k not in gone)
    data = None
    if x.data is not None and gone == set(range(rank)):
        data = shape_data.reduce(node.op_type, x, dims)
    return [Fact(x.dtype, dims, data)]


def _if(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    then = shapes.enter(attribute(node, "then_branch"), ())
    other = shapes.enter(attribute(node, "else_branch"), ())
    return [join(a, b, shapes) for a, b in zip(then, other, strict=False)]


def join(a: Fact, b: Fact, shapes: Shapes) -> Fact:
    """What is true of a value that is either `a` or `b`."""
    if a.type is not None or b.type is not None:
        return Fact(type=a.type if a.type == b.type else None)
    dims = None
    if a.dims is not None and b.dims is not None and len(a.dims) == len(b.dims):
        dims = tuple(d if d == e else shapes.fresh() for d, e in zip(a.dims, b.dims, strict=True))
    return Fact(a.dtype if a.dtype == b.dtype else None, dims)


def _loop(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    """Carried values whose shape a turn does not change keep it; scanned ones are stacked."""
    body = attribute(node, "body")
    first = [Fact(INT64, ()), Fact(ir.DataType.BOOL, ())]
    carried, ends = _turn(body, first, ins[2:], (), 1, shapes)
    scans = []
    for f in ends[1 + len(carried) :]:
        inner = None if f.dims is None else (shapes.fresh(), *_outside(f.dims, shapes))
        scans.append(Fact(f.dtype, inner))
    return [*carried, *scans]


def _turn(
    body: ir.Graph, before: Facts, states: Facts, after: Facts, skip: int, shapes: Shapes
) -> tuple[list[Fact], list[Fact]]:
    """Facts of the states of a loop that hold in every turn, and of its body's outputs.

    If a turn that is given states of these shapes returns states of these shapes, by induction all
    do (`skip` outputs come before them); if not, nothing is known of their shapes.
    """
    carried = [Fact(f.dtype, f.dims, type=f.type) for f in states]
    ends = shapes.enter(body, [*before, *carried, *after])
    if any(e.dims != f.dims for e, f in zip(ends[skip:], carried, strict=False)):
        carried = [Fact(f.dtype, type=f.type) for f in states]
        shapes.forget(body)
        ends = shapes.enter(body, [*before, *carried, *after])
    return carried, ends


def _outside(dims: tuple[Dim, ...], shapes: Shapes) -> tuple[Dim, ...]:
    """Sizes found inside a loop body, as seen from outside: unknowns may differ by turn."""
    return tuple(d if isinstance(d, int) else shapes.fresh() for d in dims)


def _scan(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact] | None:
    """States as in a loop; slices of the scanned inputs go in, slices of outputs come out."""
    body = attribute(node, "body")
    count = attribute(node, "num_scan_inputs")
    states, scanned = ins[: len(ins) - count], ins[len(ins) - count :]
    axes = attribute(node, "scan_input_axes") or [0] * count
    slices = []
    for f, axis in zip(scanned, axes, strict=True):
        at = axis % len(f.dims) if f.dims else 0
        slices.append(Fact(f.dtype, None if not f.dims else (*f.dims[:at], *f.dims[at + 1 :])))
    carried, ends = _turn(body, (), states, slices, 0, shapes)
    out_axes = attribute(node, "scan_output_axes") or [0] * (len(ends) - len(carried))
    outs = []
    for f, axis in zip(ends[len(carried) :], out_axes, strict=True):
        dims = None
        if f.dims is not None:
            at = axis % (len(f.dims) + 1)
            inner = _outside(f.dims, shapes)
            dims = (*inner[:at], shapes.fresh(), *inner[at:])
        outs.append(Fact(f.dtype, dims))
    return [*carried, *outs]


_KEEP = (
    "Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Hardmax LeakyRelu Log LogSoftmax Mish Reciprocal Relu "
    "Round Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh "
    "ThresholdedRelu PRelu CumSum Trilu LpNormalization MeanVarianceNormalization "
    "InstanceNormalization GroupNormalization LRN ScatterElements ScatterND Scatter "
    "RMSNormalization Shrink"
)
_ARITHMETIC = (
    "Add Sub Mul Div Mod Min Max Sum Mean Where BitwiseAnd BitwiseOr BitwiseXor BitShift Pow "
    "Neg Abs"
)
_COMPARE = "Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not"
_REDUCE = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

OPERATORS: dict[str, Operator] = {
    **shape_extensions.RUNTIME_OPERATORS,
    **dict.fromkeys(_KEEP.split(), _same),
    **{name: _elementwise() for name in _ARITHMETIC.split()},
    **{name: _elementwise(ir.DataType.BOOL) for name in _COMPARE.split()},
    **{f"Reduce{name}": _reduce for name in _REDUCE.split()},
    "Cast": _cast,
    "CastLike": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "If": _if,
    "Loop": _loop,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Scan": _scan,
    "Shape": _shape,
    "Size": _size,
    "Slice": shape_data.slice_,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
