"""The steps random graphs are drawn from: single operators, and forms that exporters write."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper
from random_layouts import chain, sandwich

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
DIMS = st.sampled_from([1, 2, 3, 4])


@dataclasses.dataclass(eq=False)
class Drawn:
    """A value: its name, element type and actual shape; `declared` may name dimensions."""

    name: str
    kind: int
    shape: tuple[int, ...]
    declared: list[Any] | None = None


class Graph:
    """A graph being drawn; it always stays valid."""

    def __init__(self, draw: Any, opset: int, rng: np.random.Generator) -> None:
        self.draw, self.opset, self.rng = draw, opset, rng
        self.inputs: list[Drawn] = []
        self.values: list[Drawn] = []
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._count = 0
        self._read: set[str] = set()

    # --- values -----------------------------------------------------------------------------

    def fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def add_input(self) -> None:
        rank = self.draw(st.integers(1, 4))
        shape = tuple(self.draw(DIMS) for _ in range(rank))
        names = {k: f"d{self._count}_{k}" for k in range(rank) if self.draw(st.integers(0, 4)) == 0}
        declared = [names.get(k, d) for k, d in enumerate(shape)]
        value = Drawn(self.fresh(), FLOAT, shape, declared)
        self.inputs.append(value)
        self.values.append(value)

    def sample(self, value: Drawn) -> np.ndarray:
        return self.rng.standard_normal(value.shape).astype(np.float32)

    def unused(self) -> list[Drawn]:
        return [v for v in self.values[len(self.inputs) :] if v.name not in self._read]

    def pick(self, rank: int | None = None, least: int = 0) -> Drawn | None:
        """A float value, of this rank or at least that."""
        fits = [
            v
            for v in self.values
            if v.kind == FLOAT
            and (rank is None or len(v.shape) == rank)
            and len(v.shape) >= least
            and np.prod(v.shape) <= 4096
        ]
        return self.draw(st.sampled_from(fits[-6:])) if fits else None

    def constant(self, array: np.ndarray, as_node: bool | None = None) -> str:
        """A constant, as an initializer or a Constant node."""
        name = self.fresh()
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        if self.draw(st.integers(0, 3)) == 0 if as_node is None else as_node:
            self.nodes.append(
                helper.make_node("Constant", [], [name], name=f"n{name}", value=tensor)
            )
        else:
            self.initializers.append(tensor)
        return name

    def floats(self, shape: tuple[int, ...]) -> np.ndarray:
        """Neutral or random numbers."""
        kind = self.draw(st.sampled_from(["random", "random", "zeros", "ones", "halves"]))
        if kind == "random":
            return self.rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return np.full(shape, {"zeros": 0, "ones": 1, "halves": 0.5}[kind], np.float32)

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(
        self,
        op_type: str,
        inputs: list[str | Drawn],
        shape: tuple[int, ...],
        kind: int = FLOAT,
        outputs: int = 1,
        keep: bool = True,
        **attributes: Any,
    ) -> Drawn:
        """Add a node; its first output has this shape."""
        names = [i.name if isinstance(i, Drawn) else i for i in inputs]
        self._read.update(names)
        made = Drawn(self.fresh(), kind, tuple(int(d) for d in shape))
        more = [self.fresh() for _ in range(outputs - 1)]
        self.nodes.append(
            helper.make_node(op_type, names, [made.name, *more], name=f"n{made.name}", **attributes)
        )
        if keep:
            self.values.append(made)
        return made

    def axes(
        self, op_type: str, since: int, x: Drawn | str, shape: Any, axes: list[int], **a: Any
    ) -> Drawn:
        """An operator whose axes are an attribute before opset `since` and an input after."""
        if self.opset >= since:
            return self.op(op_type, [x, self.ints(*axes)], shape, **a)
        return self.op(op_type, [x], shape, axes=axes, **a)


# --- single operators -----------------------------------------------------------------------


def unary(g: Graph) -> None:
    x = g.pick()
    if x is None:
        return
    names = [
        "Relu",
        "Neg",
        "Abs",
        "Sigmoid",
        "Tanh",
        "Erf",
        "Identity",
        "Identity",
        "Softplus",
        "LeakyRelu",
        "Elu",
        "HardSigmoid",
        "Dropout",
    ]
    names += ["HardSwish"] if g.opset >= 14 else []
    names += ["Gelu"] if g.opset >= 20 else []
    g.op(g.draw(st.sampled_from(names)), [x], x.shape)


def clip(g: Graph) -> None:
    x = g.pick()
    if x is None:
        return
    if g.opset < 11:
        g.op("Clip", [x], x.shape, min=-0.5, max=0.75)
        return
    low = g.constant(np.array(-0.5, np.float32)) if g.draw(st.booleans()) else ""
    high = [g.constant(np.array(0.75, np.float32))] if g.draw(st.booleans()) or not low else []
    g.op("Clip", [x, low, *high], x.shape)


def binary(g: Graph) -> None:
    x = g.pick()
    if x is None:
        return
    op_type = g.draw(st.sampled_from(["Add", "Sub", "Mul", "Add", "Mul", "Max", "Min", "Div"]))
    other = g.draw(st.sampled_from(["constant", "constant", "same", "value"]))
    if other == "constant" or op_type == "Div":
        low = g.draw(st.integers(0, len(x.shape)))
        shape = tuple(d if g.draw(st.booleans()) else 1 for d in x.shape[low:])
        if g.draw(st.integers(0, 5)) == 0:
            shape = (2, *(1,) * (len(x.shape) - len(shape)), *shape)
        array = g.floats(shape)
        array = np.where(array == 0, np.float32(1), array) if op_type == "Div" else array
        c: str | Drawn = g.constant(array)
    else:
        mates = [v for v in g.values if v.kind == FLOAT and fits(x.shape, v.shape)]
        c, shape = x, x.shape
        if other == "value":
            c = g.draw(st.sampled_from(mates))
            shape = c.shape
    out = np.broadcast_shapes(x.shape, shape)
    swap = g.draw(st.booleans()) and op_type != "Div"
    g.op(op_type, [c, x] if swap else [x, c], out)


def fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(d == e or 1 in (d, e) for d, e in zip(a[::-1], b[::-1], strict=False))


def transpose(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    perm = list(g.draw(st.permutations(range(len(x.shape)))))
    g.op("Transpose", [x], tuple(x.shape[p] for p in perm), perm=perm)


def transpose_pair(g: Graph) -> None:
    """Transposed, something elementwise, transposed back."""
    x = g.pick(least=2)
    if x is None:
        return
    perm = list(g.draw(st.permutations(range(len(x.shape)))))
    back = [perm.index(k) for k in range(len(perm))]
    t = g.op("Transpose", [x], tuple(x.shape[p] for p in perm), perm=perm, keep=False)
    if g.draw(st.booleans()):
        t = g.op("Relu", [t], t.shape, keep=g.draw(st.integers(0, 4)) == 0)
    c = g.constant(g.floats(t.shape[-1:]))
    t = g.op(g.draw(st.sampled_from(["Add", "Mul"])), [t, c], t.shape, keep=False)
    g.op("Transpose", [t], x.shape, perm=back)


def reshape(g: Graph) -> None:
    x = g.pick()
    if x is None:
        return
    size = int(np.prod(x.shape))
    shape: list[int] = []
    while size > 1 and len(shape) < 3:
        d = g.draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0]))
        shape.append(d)
        size //= d
    shape.append(size)
    target = list(shape)
    kind = g.draw(st.sampled_from(["plain", "minus one", "zero"]))
    if kind == "minus one":
        target[g.draw(st.integers(0, len(target) - 1))] = -1
    elif kind == "zero":
        target = [0 if k < len(x.shape) and d == x.shape[k] else d for k, d in enumerate(target)]
    g.op("Reshape", [x, g.ints(*target)], tuple(shape))


def computed_reshape(g: Graph) -> None:
    """A shape measured and put together: Shape, Gather, Unsqueeze, Concat, Reshape."""
    x = g.pick(least=2)
    if x is None:
        return
    shape = g.op("Shape", [x], (len(x.shape),), INT, keep=False)
    parts: list[str | Drawn] = []
    k = g.draw(st.integers(0, len(x.shape) - 1))
    size = g.op("Gather", [shape, g.constant(np.array(k, np.int64))], (), INT, axis=0, keep=False)
    if g.draw(st.booleans()):
        two = g.constant(np.array(2, np.int64))
        size = g.op("Mul", [size, two], (), INT, keep=False)
        size = g.op("Div", [size, two], (), INT, keep=False)
    parts.append(g.axes("Unsqueeze", 13, size, (1,), [0], kind=INT, keep=False))
    rest = g.draw(st.sampled_from(["minus one", "sizes"]))
    others = [d for j, d in enumerate(x.shape) if j != k]
    if rest == "minus one":
        parts.append(g.ints(-1))
        out = (x.shape[k], int(np.prod(others)))
    else:
        parts.append(g.ints(int(np.prod(others))))
        out = (x.shape[k], int(np.prod(others)))
    if g.draw(st.booleans()):
        parts, out = parts[::-1], out[::-1]
    target = g.op("Concat", parts, (2,), INT, axis=0, keep=False)
    g.op("Reshape", [x, target], out)


def computed_expand(g: Graph) -> None:
    """Expand to the shape of another value, guarded against -1 as exporters do."""
    x = g.pick(least=1)
    if x is None:
        return
    k = g.draw(st.integers(0, len(x.shape) - 1))
    one = (
        g.op(
            "ReduceMax",
            [x],
            tuple(1 if j == k else d for j, d in enumerate(x.shape)),
            axes=[k],
            keepdims=1,
            keep=False,
        )
        if g.opset < 18
        else g.op(
            "ReduceMax",
            [x, g.ints(k)],
            tuple(1 if j == k else d for j, d in enumerate(x.shape)),
            keepdims=1,
            keep=False,
        )
    )
    shape = g.op("Shape", [x], (len(x.shape),), INT, keep=False)
    if g.opset >= 11:
        minus = g.ints(*[-1] * len(x.shape))
        is_minus = g.op("Equal", [shape, minus], (len(x.shape),), BOOL, keep=False)
        ones = g.ints(*[1] * len(x.shape))
        shape = g.op("Where", [is_minus, ones, shape], (len(x.shape),), INT, keep=False)
    g.op("Expand", [one, shape], x.shape)


def squeeze(g: Graph) -> None:
    x = g.pick()
    if x is None:
        return
    k = g.draw(st.integers(0, len(x.shape)))
    out = (*x.shape[:k], 1, *x.shape[k:])
    y = g.axes("Unsqueeze", 13, x, out, [k])
    if g.draw(st.booleans()):
        ones = [j for j, d in enumerate(out) if d == 1 and declared_one(g, x, j, k)]
        if ones:
            j = g.draw(st.sampled_from(ones))
            g.axes("Squeeze", 13, y, (*out[:j], *out[j + 1 :]), [j])


def declared_one(g: Graph, x: Drawn, j: int, k: int) -> bool:
    return j == k


def flatten(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    axis = g.draw(st.integers(0, len(x.shape)))
    out = (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
    g.op("Flatten", [x], out, axis=axis)


def concat(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    axis = g.draw(st.integers(0, len(x.shape) - 1))
    mates = [
        v
        for v in g.values
        if v.kind == FLOAT
        and len(v.shape) == len(x.shape)
        and all(d == e or j == axis for j, (d, e) in enumerate(zip(v.shape, x.shape, strict=True)))
    ]
    count = g.draw(st.integers(1, 3))
    parts = [x, *(g.draw(st.sampled_from(mates)) for _ in range(count - 1))]
    if g.draw(st.integers(0, 5)) == 0:
        empty = tuple(0 if j == axis else d for j, d in enumerate(x.shape))
        parts.append(g.constant(np.zeros(empty, np.float32)))  # type: ignore[arg-type]
    size = sum(p.shape[axis] for p in parts if isinstance(p, Drawn))
    out = tuple(size if j == axis else d for j, d in enumerate(x.shape))
    g.op("Concat", list(parts), out, axis=axis)


def slice_(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    axis = g.draw(st.integers(0, len(x.shape) - 1))
    size = x.shape[axis]
    start = g.draw(st.integers(-size, size - 1))
    end = g.draw(st.sampled_from([size, 2**31 - 1, 2**63 - 1, -1, size - 1]))
    step = g.draw(st.sampled_from([1, 1, 1, 2, -1])) if g.opset >= 10 else 1
    if step < 0:
        start, end = g.draw(st.sampled_from([(size - 1, -(2**63)), (-1, -size - 1), (-1, -size)]))
    stop = None if step < 0 and end < -size else end
    out = list(x.shape)
    out[axis] = len(range(*slice(start, stop, step).indices(size)))
    if out[axis] == 0:
        return
    if g.opset < 10:
        g.op("Slice", [x], tuple(out), axes=[axis], starts=[start], ends=[end])
        return
    steps = [g.ints(step)] if step != 1 or g.draw(st.booleans()) else []
    g.op("Slice", [x, g.ints(start), g.ints(end), g.ints(axis), *steps], tuple(out))


def split(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    axis = g.draw(st.integers(0, len(x.shape) - 1))
    if x.shape[axis] < 2:
        return
    first = g.draw(st.integers(1, x.shape[axis] - 1))
    sizes = [first, x.shape[axis] - first]
    shapes = [tuple(s if j == axis else d for j, d in enumerate(x.shape)) for s in sizes]
    inputs: list[str | Drawn] = [x]
    attributes: dict[str, Any] = {"axis": axis}
    if g.opset >= 13:
        inputs.append(g.ints(*sizes))
    else:
        attributes["split"] = sizes
    a = g.op("Split", inputs, shapes[0], outputs=2, **attributes)
    b = Drawn(g.nodes[-1].output[1], FLOAT, shapes[1])
    g.values.append(b)
    if g.draw(st.booleans()):
        g.op("Concat", [a, b] if g.draw(st.booleans()) else [b, a], x.shape, axis=axis)


def gather(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    axis = g.draw(st.integers(0, len(x.shape) - 1))
    n = x.shape[axis]
    index = np.array(g.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=4)), np.int64)
    if g.draw(st.integers(0, 2)) == 0:
        index = np.arange(n)
    g.op(
        "Gather",
        [x, g.constant(index)],
        (*x.shape[:axis], len(index), *x.shape[axis + 1 :]),
        axis=axis,
    )


def tile(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    times = [g.draw(st.sampled_from([1, 1, 2])) for _ in x.shape]
    g.op("Tile", [x, g.ints(*times)], tuple(d * t for d, t in zip(x.shape, times, strict=True)))


def pad(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    pads = [g.draw(st.sampled_from([0, 0, 1])) for _ in range(2 * len(x.shape))]
    n = len(x.shape)
    out = tuple(d + pads[k] + pads[k + n] for k, d in enumerate(x.shape))
    if g.opset < 11:
        g.op("Pad", [x], out, pads=pads)
    else:
        value = [g.constant(np.array(0, np.float32))] if g.draw(st.booleans()) else []
        g.op("Pad", [x, g.ints(*pads), *value], out)


def reduce(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    op_type = g.draw(st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"]))
    axes = sorted(g.draw(st.sets(st.integers(0, len(x.shape) - 1), min_size=1)))
    keep = g.draw(st.booleans())
    out = tuple(1 if k in axes else d for k, d in enumerate(x.shape) if keep or k not in axes)
    since = 13 if op_type == "ReduceSum" else 18
    g.axes(op_type, since, x, out, axes, keepdims=int(keep))


def where(g: Graph) -> None:
    """Chosen by a comparison of an input (no rounding can flip it), or by a constant."""
    x = g.pick()
    source = g.draw(st.sampled_from(g.inputs))
    if x is None:
        return
    if g.draw(st.booleans()) and fits(x.shape, source.shape):
        c = g.op("Greater", [source, g.constant(np.array(0.1, np.float32))], source.shape, BOOL)
        out = np.broadcast_shapes(x.shape, source.shape)
    else:
        flags = g.rng.integers(0, 2, x.shape).astype(bool)
        flags = g.draw(st.sampled_from([flags, np.ones((), bool), np.zeros((), bool)]))
        c, out = g.constant(flags), x.shape  # type: ignore[assignment]
    y = g.constant(g.floats(()))
    g.op("Where", [c, x, y] if g.draw(st.booleans()) else [c, y, x], out)


def casts(g: Graph) -> None:
    x = g.pick()
    if x is None:
        return
    between = g.draw(st.sampled_from([TensorProto.DOUBLE, FLOAT, TensorProto.FLOAT16]))
    y = g.op("Cast", [x], x.shape, between, to=between, keep=False)
    g.op("Cast", [y], x.shape, to=FLOAT)


def softmax(g: Graph) -> None:
    x = g.pick(least=1)
    if x is None:
        return
    g.op(
        g.draw(st.sampled_from(["Softmax", "LogSoftmax"])),
        [x],
        x.shape,
        axis=g.draw(st.integers(0, len(x.shape) - 1)),
    )


def matmul(g: Graph) -> None:
    x = g.pick(least=2)
    if x is None:
        return
    n, m = x.shape[-1], g.draw(DIMS)
    w = g.constant(g.rng.standard_normal((n, m)).astype(np.float32))
    y = g.op("MatMul", [x, w], (*x.shape[:-1], m), keep=g.draw(st.integers(0, 4)) == 0)
    for _ in range(g.draw(st.integers(0, 2))):
        c = g.constant(g.floats(g.draw(st.sampled_from([(m,), (), (1, m)]))))
        y = g.op(g.draw(st.sampled_from(["Add", "Mul", "Sub"])), [y, c], y.shape, keep=False)
    g.values.append(y)


def gemm(g: Graph) -> None:
    x = g.pick(rank=2)
    if x is None:
        return
    a, b = g.draw(st.booleans()), g.draw(st.booleans())
    rows, n = x.shape[::-1] if a else x.shape
    m = g.draw(DIMS)
    w = g.constant(g.rng.standard_normal((m, n) if b else (n, m)).astype(np.float32))
    c = [g.constant(g.floats(g.draw(st.sampled_from([(m,), (1, m), ()]))))]
    if g.opset >= 11 and g.draw(st.integers(0, 2)) == 0:
        c = []
    g.op(
        "Gemm",
        [x, w, *c],
        (rows, m),
        transA=int(a),
        transB=int(b),
        alpha=g.draw(st.sampled_from([1.0, 0.5])),
        beta=g.draw(st.sampled_from([1.0, 2.0])),
    )


def conv(g: Graph) -> None:
    x = g.pick(rank=4)
    if x is None or min(x.shape[2:]) < 1:
        return
    n, c, h, w = x.shape
    group = g.draw(st.sampled_from([1, c]))
    m = group * g.draw(st.integers(1, 2))
    k = g.draw(st.sampled_from([1, 2, 3]))
    p = g.draw(st.integers(0, 1))
    if h + 2 * p < k or w + 2 * p < k:
        return
    scale, shift = g.floats((1, c, 1, 1)), g.floats((c, 1, 1))
    if g.draw(st.booleans()):
        x = g.op("Mul", [x, g.constant(scale)], x.shape, keep=False)
    if g.draw(st.booleans()):
        x = g.op("Add", [x, g.constant(shift)], x.shape, keep=False)
    weight = g.constant(g.rng.standard_normal((m, c // group, k, k)).astype(np.float32))
    bias = [g.constant(g.floats((m,)))] if g.draw(st.booleans()) else []
    y = g.op(
        "Conv",
        [x, weight, *bias],
        (n, m, h + 2 * p - k + 1, w + 2 * p - k + 1),
        group=group,
        pads=[p] * 4,
        kernel_shape=[k, k],
        keep=g.draw(st.integers(0, 4)) == 0,
    )
    if g.draw(st.booleans()):
        y = batch_norm_of(g, y)
    if g.draw(st.booleans()):
        y = g.op("Mul", [y, g.constant(g.floats((1, m, 1, 1)))], y.shape, keep=False)
    g.values.append(y)


def batch_norm_of(g: Graph, x: Drawn) -> Drawn:
    c = x.shape[1]
    parts = [g.floats((c,)), g.floats((c,)), g.floats((c,)), g.rng.uniform(0.5, 2, c)]
    names = [g.constant(np.asarray(p, np.float32)) for p in parts]
    return g.op("BatchNormalization", [x, *names], x.shape, keep=False)


def batch_norm(g: Graph) -> None:
    x = g.pick(least=2)
    if x is not None:
        g.values.append(batch_norm_of(g, x))


def pool(g: Graph) -> None:
    x = g.pick(rank=4)
    if x is None:
        return
    op_type = g.draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool"]))
    n, c, h, w = x.shape
    if op_type == "GlobalAveragePool":
        g.op(op_type, [x], (n, c, 1, 1))
        return
    k = g.draw(st.sampled_from([1, 2]))
    if min(h, w) < k:
        return
    extra = {"count_include_pad": g.draw(st.integers(0, 1))} if op_type == "AveragePool" else {}
    g.op(op_type, [x], (n, c, h - k + 1, w - k + 1), kernel_shape=[k, k], **extra)


# --- what exporters write ---------------------------------------------------------------------


def gelu(g: Graph) -> None:
    x = g.pick()
    if x is None:
        return
    kind = g.draw(st.sampled_from(["erf", "tanh", "sigmoid", "silu"]))
    s = x.shape

    def number(v: float) -> str:
        return g.constant(np.array(v, np.float32))

    def op(name: str, *ins: Any) -> Drawn:
        return g.op(name, list(ins), s, keep=False)

    if kind == "erf":
        e = op("Add", op("Erf", op("Div", x, number(2**0.5))), number(1))
        y = op("Mul", op("Mul", x, e), number(0.5))
    elif kind == "tanh":
        cube = op("Mul", op("Mul", op("Mul", x, x), x), number(0.044715))
        t = op("Tanh", op("Mul", op("Add", x, cube), number((2 / np.pi) ** 0.5)))
        y = op("Mul", op("Mul", x, number(0.5)), op("Add", t, number(1)))
    elif kind == "sigmoid":
        y = op("Mul", x, op("Sigmoid", op("Mul", x, number(1.702))))
    else:
        y = op("Mul", op("Sigmoid", x), x)
    g.values.append(y)


def norm(g: Graph) -> None:
    """LayerNorm or RMSNorm written out, over the last axis."""
    x = g.pick(least=2)
    if x is None:
        return
    mean = (*x.shape[:-1], 1)
    d = x
    if g.draw(st.booleans()):
        m = g.axes("ReduceMean", 18, x, mean, [-1], keepdims=1, keep=False)
        d = g.op("Sub", [x, m], x.shape, keep=False)
    two = g.constant(np.array(2, np.float32))
    square = (
        g.op("Pow", [d, two], x.shape, keep=False)
        if g.draw(st.booleans())
        else g.op("Mul", [d, d], x.shape, keep=False)
    )
    v = g.axes("ReduceMean", 18, square, mean, [-1], keepdims=1, keep=False)
    e = g.op("Add", [v, g.constant(np.array(1e-5, np.float32))], mean, keep=False)
    y = g.op("Div", [d, g.op("Sqrt", [e], mean, keep=False)], x.shape, keep=False)
    y = g.op("Mul", [y, g.constant(g.floats(x.shape[-1:]))], x.shape, keep=False)
    if g.draw(st.booleans()):
        y = g.op("Add", [y, g.constant(g.floats(x.shape[-1:]))], x.shape, keep=False)
    g.values.append(y)


def attention(g: Graph) -> None:
    """Scaled dot products of projections, with or without mask, some rows fully masked."""
    x = g.pick(rank=3)
    if x is None:
        return
    b, s, n = x.shape
    heads, size = g.draw(st.sampled_from([1, 2])), g.draw(st.sampled_from([2, 4]))
    width = heads * size

    def head(perm: list[int]) -> Drawn:
        w = g.constant(g.rng.standard_normal((n, width)).astype(np.float32))
        y = g.op("MatMul", [x, w], (b, s, width), keep=False)
        if biased:
            y = g.op("Add", [y, g.constant(g.floats((width,)))], y.shape, keep=False)
        y = g.op("Reshape", [y, g.ints(0, 0, heads, size)], (b, s, heads, size), keep=False)
        return g.op("Transpose", [y], tuple(y.shape[p] for p in perm), perm=perm, keep=False)

    biased = g.draw(st.booleans())
    q, k, v = head([0, 2, 1, 3]), head([0, 2, 3, 1]), head([0, 2, 1, 3])
    shape = (b, heads, s, s)
    a = g.op("MatMul", [q, k], shape, keep=False)
    a = g.op(
        g.draw(st.sampled_from(["Mul", "Div"])),
        [a, g.constant(np.array(g.draw(st.sampled_from([size**-0.5, 0.3])), np.float32))],
        shape,
        keep=False,
    )
    kind = g.draw(st.sampled_from(["none", "add", "causal", "dead row"]))
    if kind != "none":
        mask = np.where(np.tri(s, dtype=bool), 0, -1e4 if kind == "add" else -np.inf)
        if kind == "dead row":
            mask[-1] = -np.inf
        a = g.op("Add", [a, g.constant(mask.astype(np.float32))], shape, keep=False)
    p = g.op("Softmax", [a], shape, axis=-1 if g.opset >= 13 else 3, keep=False)
    if kind == "dead row" or g.draw(st.integers(0, 3)) == 0:
        nan = g.op("IsNaN", [p], shape, BOOL, keep=False)
        p = g.op("Where", [nan, g.constant(np.array(0, np.float32)), p], shape, keep=False)
    y = g.op("MatMul", [p, v], (b, heads, s, size), keep=False)
    y = g.op("Transpose", [y], (b, s, heads, size), perm=[0, 2, 1, 3], keep=False)
    g.op("Reshape", [y, g.ints(0, 0, width)], (b, s, width))


def branch(g: Graph) -> None:
    """If on a constant, on a static size, or on the data."""
    x = g.pick()
    if x is None:
        return
    kind = g.draw(st.sampled_from(["constant", "size", "data"]))
    if kind == "constant":
        c: Any = g.constant(np.array(g.draw(st.booleans())))
    elif kind == "size" and g.opset >= 11:
        size = g.op("Size", [x], (), INT, keep=False)
        c = g.op("Equal", [size, g.constant(np.array(4, np.int64))], (), BOOL, keep=False)
    else:
        total = g.op("ReduceMax", [g.inputs[0]], (), keepdims=0, keep=False)
        c = g.op("Greater", [total, g.constant(np.array(0.5, np.float32))], (), BOOL, keep=False)
    graphs = []
    for _ in range(2):
        op_type, inner, out = (
            g.draw(st.sampled_from(["Relu", "Neg", "Identity"])),
            g.fresh(),
            g.fresh(),
        )
        k = g.fresh()
        constant = helper.make_node(
            "Constant", [], [k], value=numpy_helper.from_array(np.array(g.floats(()), np.float32))
        )
        nodes = [
            constant,
            helper.make_node(op_type, [x.name], [inner]),
            helper.make_node("Mul", [inner, k], [out]),
        ]
        info = helper.make_tensor_value_info(out, FLOAT, [None] * len(x.shape))
        graphs.append(helper.make_graph(nodes, g.fresh(), [], [info]))
    g._read.add(x.name)
    g.op("If", [c], x.shape, then_branch=graphs[0], else_branch=graphs[1])


def loop(g: Graph) -> None:
    """A few turns of an addition."""
    x = g.pick()
    if x is None or g.opset < 11:
        return
    i, go, v, go2, w = (g.fresh() for _ in range(5))
    f, c = g.fresh(), g.fresh()
    nodes = [
        helper.make_node("Identity", [go], [go2]),
        helper.make_node("Cast", [i], [f], to=FLOAT),
        helper.make_node("Add", [v, f], [c]),
        helper.make_node("Tanh", [c], [w]),
    ]
    rank = [None] * len(x.shape)
    body = helper.make_graph(
        nodes,
        g.fresh(),
        [
            helper.make_tensor_value_info(i, INT, []),
            helper.make_tensor_value_info(go, BOOL, []),
            helper.make_tensor_value_info(v, FLOAT, rank),
        ],
        [
            helper.make_tensor_value_info(go2, BOOL, []),
            helper.make_tensor_value_info(w, FLOAT, rank),
        ],
    )
    count = g.constant(np.array(g.draw(st.integers(1, 3)), np.int64))
    g.op("Loop", [count, g.constant(np.array(True)), x], x.shape, body=body)


STEPS = [
    unary, unary, unary, clip, binary, binary, binary, transpose, transpose, transpose_pair,
    reshape, reshape, computed_reshape, computed_expand, squeeze, flatten, concat, slice_, slice_,
    split, gather, tile, pad, reduce, where, casts, softmax, matmul, matmul, gemm, conv, conv,
    batch_norm, pool, gelu, norm, attention, branch, loop, sandwich, sandwich, chain,
]  # fmt: skip
