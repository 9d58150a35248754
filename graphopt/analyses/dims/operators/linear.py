"""Contractions: y[o] = sum over c of x[c] w[o, c]. Conv of every kind, MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.analyses.dims.axes import Tensor
from graphopt.analyses.dims.operation import Operation
from graphopt.analyses.dims.system import ONE
from graphopt.analyses.shapes.symbolic import Dim

__all__ = ["OPERATORS", "contract", "matmul", "spatial"]

WINDOW = "a window slides along it"


def spatial(op: Operation, x: Tensor, y: Tensor, kernel: Sequence[Dim]) -> None:
    """Axes from the third on: a window of one carries them, wider ones let no position go."""
    count = x.rank - 2
    strides = list(op.attribute("strides") or [1] * count)
    pads = list(op.attribute("pads") or [0] * 2 * count)
    for k in range(count):
        single = kernel[k] == 1 and strides[k] == 1 and not (pads[k] or pads[k + count])
        if single and x.sizes[k + 2] == y.sizes[k + 2]:
            op.same(x[k + 2], y[k + 2])
        else:
            op.freeze((x[k + 2], y[k + 2]), WINDOW)


def conv(op: Operation) -> None:
    """x (N, g*c, ...), w (g*o, c, ...), b (g*o) -> y (N, g*o, ...); w, b inputs 1, 2."""
    grouped(op, op.x(0), op.x(1), op.y(), [op.x(2)] if op.has(2) else [])


def fused_conv(op: Operation) -> None:
    """A Conv, plus an activation and a tensor z like y to add."""
    conv(op)
    if op.has(3):
        op.all_same(op.x(3), op.y())


def grouped(op: Operation, x: Tensor, w: Tensor, y: Tensor, like_outputs: list[Tensor]) -> None:
    """The channels of a convolution: group g is an axis of its own, and its number an attribute."""
    op.same(x[0], y[0])
    op.freeze(w.axes[2:], WINDOW)
    spatial(op, x, y, w.sizes[2:])
    op.same(w[0], y[1])
    for b in like_outputs:
        if b.rank == 1:
            op.same(b[0], y[1])
    op.means("channels", x[1], y[1])
    group = int(op.attribute("group", 1))
    if group == 1:
        op.same(x[1], w[1])
        contract(op, x, 1, w, 1, y, 1, 0)
        for b in like_outputs:
            op.writes(b, 0)
        return
    g = op.virtual(group)
    outs = w.sizes[0]
    o = op.virtual(outs // group) if isinstance(outs, int) else ONE
    op.merge(x[1], (g, w[1]))
    op.merge(y[1], (g, o))
    op.means("groups" if max(w[1], o) >= 0 else "channels", g)
    op.means("channels", w[1], o)
    op.count(g, attribute="group")
    op.reads(x, 1, via=w[1])
    op.reads(w, 1)
    op.writes(w, 0, via=o)
    op.writes(y, 1, via=o)
    for b in like_outputs:
        if b.rank == 1:
            op.writes(b, 0, via=o)


def contract(
    op: Operation, x: Tensor, xc: int, w: Tensor, wc: int, y: Tensor, yo: int, wo: int
) -> None:
    """Roles of y[yo] = sum over x[xc] w[wc, wo]: activations against activations write nothing."""
    op.reads(x, xc)
    op.reads(w, wc)
    if op.axes.fixed(w.value):
        op.writes(w, wo)
        op.writes(y, yo)


def conv_transpose(op: Operation) -> None:
    """x (N, g*c, ...), w (g*c, o, ...), b (g*o) -> y (N, g*o, ...)."""
    x, w, y = op.x(0), op.x(1), op.y()
    op.same(x[0], y[0])
    op.freeze(w.axes[2:], WINDOW)
    spatial(op, x, y, w.sizes[2:])
    op.same(x[1], w[0])
    if op.has(2):
        op.same(op.x(2)[0], y[1])
        op.writes(op.x(2), 0)
    op.means("channels", x[1], y[1])
    group = int(op.attribute("group", 1))
    op.writes(w, 1)
    if group == 1:
        op.same(w[1], y[1])
        op.reads(x, 1)
        op.reads(w, 0)
        op.writes(y, 1)
        return
    g = op.virtual(group)
    ins = w.sizes[0]
    c = op.virtual(ins // group) if isinstance(ins, int) else ONE
    op.merge(x[1], (g, c))
    op.merge(y[1], (g, w[1]))
    op.count(g, attribute="group")
    op.reads(x, 1, via=c)
    op.reads(w, 0, via=c)
    op.writes(y, 1, via=w[1])


def gemm(op: Operation) -> None:
    """y = alpha op(A) op(B) + beta C, with op a transposition or nothing."""
    a, b, y = op.x(0), op.x(1), op.y()
    rows, inner = (1, 0) if op.attribute("transA", 0) else (0, 1)
    contracted, columns = (1, 0) if op.attribute("transB", 0) else (0, 1)
    op.same(a[inner], b[contracted])
    op.same(a[rows], y[0])
    op.same(b[columns], y[1])
    contract(op, a, inner, b, contracted, y, 1, columns)
    if op.has(2):
        op.broadcast([op.x(2)], y)
        if op.x(2).rank and op.x(2)[-1] == y[1]:
            op.writes(op.x(2), -1)


def matmul(op: Operation) -> None:
    """y[..., i, j] = sum over k of a[..., i, k] b[..., k, j]; vectors have one axis less."""
    product(op, op.x(0), op.x(1), op.y())


def fused_matmul(op: Operation) -> None:
    """alpha op(A) op(B), op a transposition of the last two axes or nothing."""
    if op.attribute("transBatchA", 0) or op.attribute("transBatchB", 0):
        op.freeze_all("it transposes batch axes")
        return
    product(op, op.x(0), op.x(1), op.y(), op.attribute("transA", 0), op.attribute("transB", 0))


def product(
    op: Operation, a: Tensor, b: Tensor, y: Tensor, trans_a: int = 0, trans_b: int = 0
) -> None:
    """A matrix product with broadcast batch axes."""
    trans_a, trans_b = trans_a and a.rank > 1, trans_b and b.rank > 1
    ka = -2 if trans_a else -1
    kb = -1 if trans_b or b.rank == 1 else -2
    op.same(a[ka], b[kb])
    if b.rank > 1:
        j = -2 if trans_b else -1
        op.same(b[j], y[-1])
        contract(op, a, ka, b, kb, y, -1, j)
    else:
        op.reads(a, ka)
        op.reads(b, kb)
    if a.rank > 1:
        i = -1 if trans_a else -2
        at = -2 if b.rank > 1 else -1
        op.same(a[i], y[at])
        if op.axes.fixed(a.value) and not op.axes.fixed(b.value):
            op.writes(a, i)
            op.writes(y, at)
    tail = (a.rank > 1) + (b.rank > 1)
    batch = y.axes[: y.rank - tail]
    if y.rank > 2 and not any(op.axes.fixed(t.value) for t in (a, b)):
        via = None if y.rank > 3 else batch[0]
        op.means("heads", *batch, via=via)
        op.means("head size", a[ka], *([b[-2 if trans_b else -1]] if b.rank > 1 else []), via=via)
    for t in (a, b):
        for k, axis in enumerate(reversed(t.axes[:-2])):
            if axis != ONE:
                op.same(axis, batch[len(batch) - 1 - k])


def einsum(op: Operation) -> None:
    """Letters that are equal are the same axis; those that the result lacks are contracted."""
    text = op.attribute("equation")
    text = (text.decode() if isinstance(text, bytes) else text).replace(" ", "")
    if "..." in text:
        op.freeze_all("an Einsum with an ellipsis")
        return
    left, _, right = text.partition("->")
    terms = left.split(",")
    if "->" not in text:
        letters = left.replace(",", "")
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    seen: dict[str, int] = {}
    tensors = [(op.x(k), term) for k, term in enumerate(terms)]
    for tensor, term in [*tensors, (op.y(), right)]:
        for k, letter in enumerate(term):
            if term.count(letter) > 1:
                op.freeze(tensor[k], "a diagonal is taken of it")
            if tensor[k] == ONE:
                continue
            if letter in seen:
                op.same(seen[letter], tensor[k])
            else:
                seen[letter] = tensor[k]
            if letter not in right:
                op.reads(tensor, k)
    weights = [(t, s) for t, s in tensors if op.axes.fixed(t.value)]
    for tensor, term in weights:
        for k, letter in enumerate(term):
            if letter in right and sum(letter in s for _, s in tensors) == 1:
                op.writes(tensor, k)
                op.writes(op.y(), right.index(letter))


OPERATORS = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "com.microsoft:FusedConv": fused_conv,
    "com.microsoft:FusedGemm": gemm,
    "com.microsoft:FusedMatMul": fused_matmul,
    "com.microsoft:TransposeMatMul": fused_matmul,
}
