"""LoRA merging: parallel products of one value with matrices become one product."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import held_linear, rounded
from graphopt.passes.fuse.parallel.addends import (
    SUMS,
    Scaled,
    addends,
    scaled,
    single_use,
    sum_of,
    without,
)
from graphopt.passes.fuse.weights import FLOATS, Array

from graphopt import Context, Refused, Replacement, Walker
from graphopt.analyses.linear import Linear
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, shared
from graphopt.rewriting.rules import Found

__all__ = ["ParallelProducts"]


@dataclasses.dataclass(frozen=True)
class _Product:
    """The addend x A B ... + b, of one matrix or several in a row, for nothing else."""

    leaf: ir.Value
    chain: tuple[Linear, ...]

    @property
    def x(self) -> ir.Value:
        return self.chain[0].x

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        return tuple(lin.node for lin in self.chain)

    @property
    def shape(self) -> tuple[int, int]:
        return self.chain[0].in_channels, self.chain[-1].out_channels

    def affine(self) -> tuple[Array, Array]:
        """The whole product's matrix of shape (N, K), and b of shape (N,), float64."""
        matrix, bias = np.eye(self.shape[0]), np.zeros(self.shape[0])
        for k, lin in enumerate(self.chain):
            own = lin.alpha * lin.matrix()[0].astype(np.float64)
            matrix, bias = (own @ matrix if k else own), own @ bias
            if lin.bias is not None:
                bias = bias + lin.beta * array_of(lin.bias).astype(np.float64).reshape(-1)
        return matrix, bias


class ParallelProducts(Walker):
    """x W + x A B + (s * x + t) -> x (W + A B + diag(s)) + t

    for MatMul and Gemm, whose own bias and factors go the same way; the result costs what x W did.
    """

    roots = SUMS

    def find(self, node: ir.Node, ctx: Context) -> Found:
        facts = ctx.get(shapes)
        leaves, inner = addends(node)
        products = [p for p in (_product(v, facts, node.graph) for v in leaves) if p is not None]
        for base in products:
            if len(base.chain) > 1:
                continue
            parts: list[_Product | Scaled] = [
                p for p in products if p is not base and p.x is base.x and p.shape == base.shape
            ]
            copies = (scaled(leaf, base.chain[0], facts, node.graph) for leaf in leaves)
            parts += [copy for copy in copies if copy is not None]
            if not parts:
                continue
            arrays = _merged(base, parts)
            if arrays is None:
                return Refused("the sum of the weights would overflow or a weight is not finite")
            rest = without(leaves, [base.leaf, *(part.leaf for part in parts)])
            return Replacement(
                partial(_one_product, node, base, arrays, rest),
                (*inner, *base.nodes, *(n for part in parts for n in part.nodes)),
            )
        return None


def _product(leaf: ir.Value, facts: Shapes, graph: object) -> _Product | None:
    chain: list[Linear] = []
    while (lin := _matrix(leaf if not chain else chain[0].x, facts, graph)) is not None:
        chain.insert(0, lin)
    return _Product(leaf, tuple(chain)) if chain else None


def _matrix(value: ir.Value, facts: Shapes, graph: object) -> Linear | None:
    maker = single_use(value, graph)
    if maker is None or maker.op_type not in ("MatMul", "Gemm"):
        return None
    lin = held_linear(maker, facts)
    if lin is None or lin.left or lin.turned or lin.dtype not in FLOATS or shared(lin.weight):
        return None
    if lin.bias is not None and constant_shape(lin.bias) != (lin.out_channels,):
        return None
    return lin


def _merged(base: _Product, parts: list[_Product | Scaled]) -> tuple[Array, Array] | None:
    """The sum of all matrices, and of all biases; None if one overflows or is not finite."""
    matrix, bias = base.affine()
    for part in parts:
        if isinstance(part, _Product):
            more, shift = part.affine()
        else:
            scale, shift = part.scale_shift(base.shape[1])
            more = np.diag(scale)
        matrix, bias = matrix + more, bias + shift
    like = base.chain[0].array()[:0]
    new, offset = rounded(matrix, like), rounded(bias, like)
    return None if new is None or offset is None else (new, offset)


def _one_product(
    root: ir.Node, base: _Product, arrays: tuple[Array, Array], rest: list[ir.Value], op: Builder
) -> ir.Value:
    lin = base.chain[0]
    name = lin.weight.name or "weight"
    weight = op.constant(lin.stored(arrays[0][None]), name)
    if lin.node.op_type == "Gemm":
        bias = op.constant(arrays[1], f"{name}_bias")
        product = op.again(lin.node, [lin.x, weight, bias], alpha=None, beta=None)
    else:
        product = op.MatMul(lin.x, weight)
        if arrays[1].any():
            product = op.Add(product, op.constant(arrays[1], f"{name}_bias"))
    return sum_of(op, root, product, rest)
