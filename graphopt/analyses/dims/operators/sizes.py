"""Sizes as values: Shape reads them, ConstantOfShape and Range make tensors of them.

The cut lets every Shape go on telling the original sizes (a head size that is data stays what it
was), and writes new sizes where an operator uses them as a shape (see `Count`).
"""

from __future__ import annotations

from graphopt.analyses.dims.operation import Operation

__all__ = ["OPERATORS"]


def shape(op: Operation) -> None:
    """The sizes of its input; it holds none of the input's elements."""
    op.freeze(op.y(), "its elements are sizes")


def constant_of_shape(op: Operation) -> None:
    """One value everywhere, in a shape."""
    for k, axis in enumerate(op.y().axes):
        op.count(axis, operand=0, element=k)
    op.freeze(op.x(0), "its elements are sizes")


def range_(op: Operation) -> None:
    """Positions as data."""
    op.freeze(op.y(), "its positions are data")


def constant(op: Operation) -> None:
    """A constant has axes at each of its uses, not here."""


OPERATORS = {
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "EyeLike": lambda op: op.freeze_all("its positions are data"),
    "NonZero": lambda op: op.freeze_all("its positions are data"),
    "Range": range_,
    "Shape": shape,
    "Size": shape,
}
