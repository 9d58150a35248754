"""Elementwise operators: y[i] = f(a[i], b[i], ...), with NumPy broadcasting."""

from __future__ import annotations

from graphopt.analyses.dims.operation import Operation

__all__ = ["BROADCAST", "OPERATORS"]

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
VARIADIC = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
MICROSOFT = "BiasGelu FastGelu Gelu QuickGelu BiasAdd"

#: Those with several operands of equal standing.
BROADCAST = frozenset({*VARIADIC.split(), *MICROSOFT.split()})


def elementwise(op: Operation) -> None:
    """Axes of the same place, counted from the right, are the same."""
    op.elementwise()


def first_only(op: Operation) -> None:
    """Outputs are like the first input; the other inputs are options (Dropout, CastLike)."""
    for y in op.outputs():
        op.all_same(op.x(0), y)


OPERATORS = {
    **dict.fromkeys((*UNARY.split(), *VARIADIC.split()), elementwise),
    **{f"com.microsoft:{name}": elementwise for name in MICROSOFT.split()},
    "CastLike": first_only,
    "Dropout": first_only,
}
