"""Reductions, and what looks along an axis: Softmax, ArgMax, TopK, CumSum."""

from __future__ import annotations

from graphopt.analyses.dims.operation import Operation, Unsupported

__all__ = ["OPERATORS"]

REDUCE = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"


def reduce(op: Operation) -> None:
    """Axes reduced are read, the others carried."""
    x, y = op.x(0), op.y()
    axes = op.integers(1, "axes")
    if axes is None and op.has(1):
        raise Unsupported("the reduced axes are not known")
    if not axes:
        axes = [] if op.attribute("noop_with_empty_axes", 0) else list(range(x.rank))
    reduced = {a % x.rank for a in axes} if x.rank else set()
    at = 0
    for k in range(x.rank):
        if k in reduced:
            op.reads(x, k)
            at += op.attribute("keepdims", 1) != 0
        else:
            op.same(x[k], y[at])
            at += 1


def arg_reduce(op: Operation) -> None:
    """The index of the largest or smallest along `axis`."""
    x, y = op.x(0), op.y()
    axis = int(op.attribute("axis", 0)) % x.rank
    op.freeze(x[axis], f"{op.node.op_type} looks along it")
    keep = int(op.attribute("keepdims", 1))
    rest = [y[k] for k in range(y.rank) if not (keep and k == axis)]
    for a, b in zip((x[k] for k in range(x.rank) if k != axis), rest, strict=True):
        op.same(a, b)


def softmax(op: Operation) -> None:
    """exp(x) / sum(exp(x)) along `axis` (along all axes from `axis` on before opset 13)."""
    x = op.x(0)
    op.all_same(x, op.y())
    old = op.opset() < 13
    axis = int(op.attribute("axis", 1 if old else -1)) % x.rank
    op.freeze(x.axes[axis:] if old else x[axis], f"{op.node.op_type} looks along it")


def along(op: Operation) -> None:
    """Something of the same shape that depends on order along one axis."""
    x, y = op.x(0), op.y()
    op.all_same(x, y)
    axis = op.integers(1)
    op.freeze(x.axes if axis is None else x[axis[0] % x.rank], f"{op.node.op_type} goes along it")


def top_k(op: Operation) -> None:
    """Values and indices of the k largest along `axis`."""
    x = op.x(0)
    axis = int(op.attribute("axis", -1)) % x.rank
    for y in op.outputs():
        for k in range(x.rank):
            if k == axis:
                op.freeze((x[k], y[k]), "TopK looks along it")
            else:
                op.same(x[k], y[k])


def trilu(op: Operation) -> None:
    """A triangle of the last two axes."""
    op.all_same(op.x(0), op.y())
    op.freeze(op.x(0).axes[-2:], "a triangle is taken of it")


OPERATORS = {
    **{f"Reduce{kind}": reduce for kind in REDUCE.split()},
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    "CumProd": along,
    "CumSum": along,
    "TopK": top_k,
    "Trilu": trilu,
}
