"""Weight-only quantization, the pass: products read their matrix in 4 or 8 bits.

    y = x W            ->  MatMulNBits(x, Q, s, z)
    y = x W + b        ->  MatMulNBits(x, Q, s, z) + b          (Gemm)

What bounds a language model that writes one token after another is reading its weights: at 4 bits
there is an eighth of them. Activations stay as they are, so no ranges are needed; with samples each
weight is rounded for what it multiplies (Frantar et al., GPTQ, ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.rounding import Order
from graphopt.passes.int8.weights import FEW_BITS, Weight, weight_of
from graphopt.passes.weight_only.blocks import Blocks, in_blocks, order_of

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.execution.staged import Staged
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.pass_ import Pass

__all__ = ["WeightOnly"]

Array = np.ndarray[Any, Any]

#: Smaller matrices cost more in scales and calls than they save.
SMALLEST = 1 << 14
#: Samples and rows of one run that moments are taken of, and the longest row rounded for them.
RUNS, ROWS, LONGEST = 16, 2048, 4096


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Store the matrices of products in 4 or 8 bits; compute in floating point.

    For targets that have the operator (see `graphopt targets`), and models bound by reading
    weights. A matrix that is read elsewhere too stays as it is.

    Attributes:
        bits: of a weight, 4 or 8.
        block: weights that share a scale and a zero point: a power of two, at least 16.
        exclude: node name patterns (`*` and `?` match) to leave as they are.
    """

    bits: Literal[4, 8] = 4
    block: int = 32
    exclude: tuple[str, ...] = ()

    lossy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits is 4 or 8, not {self.bits}")
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(f"block is a power of two from 16 on, not {self.block}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Replace products in place; returns how many."""
        if FEW_BITS not in ctx.target.operators:
            ctx.note(f"{ctx.target.name} has no product that reads weights of a few bits.")
            return 0
        wanted = self._wanted(model, ctx)
        names = Names(model)
        orders = self._orders(model, ctx, wanted)
        for node, weight in ctx.track(wanted.items(), len(wanted), "rounding weights"):
            self._replace(model, ctx, names, node, weight, next(orders))
        orders.close()
        return len(wanted)

    def _orders(
        self, model: ir.Model, ctx: Context, wanted: Mapping[ir.Node, Weight]
    ) -> Generator[Order | None, None, None]:
        """For each of `wanted` the order to round its weight in, known from real samples alone."""
        if ctx.samples is None or ctx.samples.synthetic:
            yield from [None] * len(wanted)
            return
        with Staged(model.clone(), islice(ctx.samples, RUNS)) as seen:
            values = {v.name: v for v in seen.model.graph.inputs}
            values.update({o.name: o for n in seen.model.graph for o in n.outputs})
            read = [values[_data(n).name] for n in wanted]
            order: Order | None = None
            for k, (value, weight) in enumerate(zip(read, wanted.values(), strict=True)):
                if k == 0 or value is not read[k - 1]:  # Q, K and V read the same
                    h = _moment(seen, value) if weight.shape[0] <= LONGEST else None
                    order = None if h is None else order_of(h, self.block)
                seen.forget(read[k + 1 :])
                yield order

    def _wanted(self, model: ir.Model, ctx: Context) -> Mapping[ir.Node, Weight]:
        """The products to replace, and their matrices [k, n]."""
        found = {}
        for node in model.graph:
            weight = _weight(node)
            if weight is None:
                continue
            rank = ctx.get(shapes).rank(_data(node))
            reason = self._why_not(node, weight, rank)
            if reason:
                ctx.refuse(self, node, f"{reason}: it stays as it is")
            elif ctx.edit(self, node):
                found[node] = weight
        return found

    def _why_not(self, node: ir.Node, weight: Weight, rank: int | None) -> str:
        excluded = next((p for p in self.exclude if fnmatchcase(node.name or "", p)), None)
        if excluded is not None:
            return f"excluded by '{excluded}'"
        if rank is None or rank < 2:
            return "what it multiplies is not known to have rows"
        if int(np.prod(weight.shape)) < SMALLEST or weight.shape[0] < self.block:
            return "its matrix is small"
        if len(list(weight.root.uses())) > 1 or weight.root.is_graph_output():
            return "its matrix is read elsewhere too"
        if not np.isfinite(weight.array()).all():
            return "its matrix is not finite"
        return ""

    def _replace(
        self,
        model: ir.Model,
        ctx: Context,
        names: Names,
        node: ir.Node,
        weight: Weight,
        order: Order | None,
    ) -> None:
        w = weight.array()
        made = in_blocks(w.T, self.bits, self.block, w.dtype, order)
        op = Builder(model, node, names)
        y = _product(op, node, made, weight, self.block)
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is not None:
            y.type, y.shape = node.outputs[0].type, node.outputs[0].shape
            y = op.node("Add", [y, bias]).outputs[0]
        op.take_over(node.outputs[0], y)
        provenance.derive(op.nodes, [node], ctx.pass_name)
        remove_dead([node])


def _product(op: Builder, node: ir.Node, made: Blocks, weight: Weight, block: int) -> ir.Value:
    integers, zeros = made.packed()
    base = weight.root.name or "weight"
    inputs = [
        _data(node),
        op.constant(integers, f"{base}_q"),
        op.constant(made.scales, f"{base}_scale"),
        op.constant(zeros, f"{base}_zero"),
    ]
    k, n = weight.shape
    attributes = {"K": k, "N": n, "bits": made.bits, "block_size": block}
    return op.node("MatMulNBits", inputs, attributes, domain="com.microsoft").outputs[0]


def _weight(node: ir.Node) -> Weight | None:
    """The constant float matrix [k, n] that a product reads, or None."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    found = weight_of(node.inputs[1])
    if found is None or len(found.shape) != 2 or weight_of(node.inputs[0]) is not None:
        return None
    if found.tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    if node.op_type == "MatMul":
        return found
    given = node.attributes
    transposed = given.get_int("transA", 0)
    if transposed or not given.get_float("alpha", 1.0) == given.get_float("beta", 1.0) == 1.0:
        return None
    if given.get_int("transB", 0):
        return Weight(found.root, found.tensor, found.perm[::-1])
    return found


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _moment(seen: Staged, value: ir.Value) -> Array | None:
    """The mean of x^T x over rows x of a value on samples; None if a row is not finite."""
    square: Array | None = None
    rows = 0
    for (x,) in seen.values([value]):
        flat = x.reshape(-1, x.shape[-1])
        step = -(-len(flat) // ROWS)
        flat = flat[::step].astype(np.float32, copy=False)
        product = flat.T @ flat
        square = product.astype(np.float64) if square is None else square + product
        rows += len(flat)
    if square is None or not np.isfinite(square).all():
        return None
    return square / max(rows, 1)
