"""Shapes of ai.onnx.ml: trees, linear and support vector models, scalers, encoders.

A row of input is a row of output; ONNX's own inference knows few of these, and none of version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.analyses.shapes.facts import Fact, Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute

__all__ = ["OPERATORS"]

FLOAT, INT64, STRING = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.STRING


def _rows(fact: Fact) -> Dim | None:
    """How many rows; a vector is one."""
    if fact.dims is None or not 1 <= len(fact.dims) <= 2:
        return None
    return fact.dims[0] if len(fact.dims) == 2 else 1


def _matrix(x: Fact, dtype: ir.DataType | None, columns: int) -> Fact:
    rows = _rows(x)
    return Fact(dtype, None if rows is None else (rows, columns))


def _classifier(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact] | None:
    """(labels, a score for each class)"""
    numbers, texts = (attribute(node, f"classlabels_{k}", ()) for k in ("int64s", "strings"))
    if node.op_type == "LinearClassifier":
        numbers = attribute(node, "classlabels_ints", ())
    rows = _rows(ins[0])
    labels = Fact(STRING if texts else INT64, None if rows is None else (rows,))
    return [labels, _matrix(ins[0], FLOAT, max(len(texts or numbers), 2))]


def _regressor(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    name = "targets" if node.op_type == "LinearRegressor" else "n_targets"
    return [_matrix(ins[0], FLOAT, int(attribute(node, name, 1)))]


def _ensemble(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    return [_matrix(ins[0], ins[0].dtype, int(attribute(node, "n_targets", 1)))]


def _floats(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """Scaler and Normalizer give float32 of the input's shape."""
    return [Fact(FLOAT, ins[0].dims)]


def _like_input(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    return [Fact(ins[0].dtype, ins[0].dims)]


_ML = "ai.onnx.ml"
OPERATORS: dict[tuple[str, str], Callable[[ir.Node, Sequence[Fact], Shapes], list[Fact] | None]] = {
    **{(_ML, f"{k}Classifier"): _classifier for k in ("TreeEnsemble", "Linear", "SVM")},
    (_ML, "TreeEnsembleRegressor"): _regressor,
    (_ML, "LinearRegressor"): _regressor,
    (_ML, "TreeEnsemble"): _ensemble,
    **{(_ML, k): _floats for k in ("Scaler", "Normalizer")},
    **{(_ML, k): _like_input for k in ("Binarizer", "Imputer")},
}
