"""Weight-only quantization, the pass: products read their matrix in 2, 4 or 8 bits.

    y = x W            ->  MatMulNBits(x, Q, s, z)              or, where a target has none,
                           MatMul(x, DequantizeLinear(Q, s, z))
    y = x W + b        ->  MatMulNBits(x, Q, s, z) + b          (Gemm)
    y = Gather(T, i)   ->  GatherBlockQuantized(Q, i, s, z)     (tables)
    y = MoE(x, p, W)   ->  QMoE(x, p, Q, s, z)                  (mixtures of experts)

What bounds a language model that writes one token after another is reading its weights: at 4 bits
there is an eighth of them. No ranges are needed; with samples each weight is rounded for what it
multiplies (Frantar et al., GPTQ, ICLR 2023). A target that computes in integers rounds each block
of a row of x to 8 bits when it runs: without that the product is slower than that of floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.operators import FEW_BITS
from graphopt.passes.weight_only.allocation import REFERENCE, mixed_forms
from graphopt.passes.weight_only.blocks import SMALLEST as SMALLEST_BLOCK
from graphopt.passes.weight_only.blocks import Form, form_of, sizes_of
from graphopt.passes.weight_only.experts import (
    EXPERTS,
    block_of,
    is_mixture,
    pack_experts,
    why_no_experts,
)
from graphopt.passes.weight_only.finished import Finished
from graphopt.passes.weight_only.levels import agreement, said, told
from graphopt.passes.weight_only.orders import RUNS, orders_of
from graphopt.passes.weight_only.standard import OPSETS, is_standard, raised, why_clipped
from graphopt.passes.weight_only.standard import why_not as why_not_standard
from graphopt.passes.weight_only.tables import LOOKUP, candidates, tied, why_not
from graphopt.passes.weight_only.writer import BlockWriter, reads_floats

from graphopt.analyses.linear import Linear, linear_of
from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.layers import by_node, pattern_of
from graphopt.pass_ import Pass

__all__ = ["WeightOnly"]

Array = np.ndarray[Any, Any]
#: Smaller matrices cost more in scales and calls than they save.
SMALLEST = 1 << 14
NOTHING = "no product reads a matrix of weights that is worth storing so"
#: `bits` that products choose themselves.
MIXED = "mixed"
#: Blocks for which there are kernels of 2 bits; a thousand times slower otherwise.
KERNELS_2 = (32, 64, 128)


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Store the matrices of products in 2, 4 or 8 bits a weight, scaled block by block.

    For models bound by reading weights, and targets that have an operator for it (MatMulNBits) or
    read the standard form of opset 21 (25 for 2 bits), to which the model is raised: onnx, ort. A
    matrix that is read elsewhere too stays as it is.

    Attributes:
        bits: of a weight, 2, 4 or 8; "mixed": of each product as is fastest without a larger error
            of the outputs than 4 bits in blocks of 32 leave, for which it needs samples.
        block: weights that share a scale: a power of two, at least 16; with 2 bits 32, 64 or 128.
            None: by the shape of the matrix, 128, 64 or 32, whichever has the least error for its
            bytes. So it is chosen whether blocks have zero points or are symmetric.
        layers: (pattern, bits) pairs (`graphopt.layers`): products whose name matches are stored in
            so many bits instead, or with 0 stay as they are; the first match counts.
    """

    bits: Literal[2, 4, 8, "mixed"] = 4
    block: int | None = None
    layers: tuple[tuple[str, Literal[0, 2, 4, 8]], ...] = ()

    lossy: ClassVar[bool] = True
    compresses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8, MIXED):
            raise ValueError(f"bits is 2, 4, 8 or '{MIXED}', not {self.bits}")
        for pattern, bits in self.layers:
            if bits not in (0, 2, 4, 8):
                raise ValueError(f"layers: '{pattern}' has 0, 2, 4 or 8 bits, not {bits}")
        block = self._least
        if block < SMALLEST_BLOCK or block & (block - 1):
            raise ValueError(f"block is a power of two from 16 on, not {block}")
        if self._two and block not in KERNELS_2:
            raise ValueError(f"with 2 bits block is 32, 64 or 128, not {block}")

    @property
    def _two(self) -> bool:
        """Whether a matrix may have 2 bits."""
        return bool({2, MIXED} & {self.bits, *(b for _, b in self.layers)})

    @property
    def _usual(self) -> int:
        """The bits of a matrix that nothing else is said or measured of."""
        return 4 if isinstance(self.bits, str) else self.bits

    @property
    def _least(self) -> int:
        """The smallest block that may be chosen."""
        return self.block or (KERNELS_2[0] if self._two else SMALLEST_BLOCK)

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[int, ...]]:
        """The bits that each product's matrix may have, where one operator reads it.

        The standard form is two, which a runtime makes one of: timed apart they say nothing.
        """
        if FEW_BITS not in ctx.target.operators:
            return {}
        silent = Context(model, target=ctx.target, shapes=ctx.shapes)
        bits = (8, 4, 2) if self.block in (None, *KERNELS_2) else (8, 4)
        return {pattern_of(op.node): bits for op in self._wanted(model, silent, {})}

    def only(
        self, layers: tuple[tuple[str, Literal[0, 2, 4, 8]], ...], others: Sequence[str] = ()
    ) -> WeightOnly:
        """Stores these products' matrices in a few bits, and no other's."""
        return replace(self, layers=(*layers, ("*", 0)))

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Replace products in place; returns how many."""
        standard = is_standard(ctx.target)
        if not standard and FEW_BITS not in ctx.target.operators:
            ctx.note(f"{ctx.target.name} has no product that reads weights of a few bits.")
            return 0
        bits = by_node(self.layers, model.graph, "weight_only")
        settled = raised(model, ctx, self._widths(model, ctx, bits)) if standard else 0
        if settled is None:
            return 0
        wanted = self._wanted(model, ctx, bits)
        lookups = self._lookups(model, ctx, bits, wanted)
        mixtures = self._mixtures(model, ctx, bits)
        if not wanted and not lookups and not mixtures:
            return settled or ctx.nothing(NOTHING)
        forms = self._forms(model, wanted + lookups, ctx, bits)
        nbytes = sum(
            op.weight.const_value.nbytes for op in wanted + lookups if op.weight.const_value
        )
        options = f"{self}, standard form" if standard else str(self)
        finished = Finished(model, ctx, options, nbytes, RUNS)
        orders = orders_of(model, ctx, wanted, forms, finished)
        writer = BlockWriter(model, ctx, finished, standard=standard)
        rounded = ctx.target.int8 is not None and not standard  # activations, when it runs
        shares = []
        for op in ctx.track(wanted + lookups, len(wanted + lookups), "rounding weights"):
            order, rows = next(orders) if op.at else (None, None)
            name = str(op.y.name)
            made = writer.replace(op, forms[op.node], order)
            if rows is None:
                continue
            share = finished.share(name, partial(_share, made, rows, rounded))
            if rounded:
                shares.append((op.node.name or "", share))
                provenance.explain([made], f"{self}: {said(share)}")
        orders.close()
        for node, form in ctx.track(mixtures.items(), len(mixtures), "rounding experts"):
            pack_experts(writer, node, form)
        finished.leave_with(model)
        if shares:
            ctx.note(told(shares))
        return settled + len(wanted) + len(lookups) + len(mixtures)

    def _forms(
        self, model: ir.Model, ops: Sequence[Linear], ctx: Context, bits: Mapping[ir.Node, int]
    ) -> dict[ir.Node, Form]:
        """The form of each; of equal shapes the same, unless bits are mixed."""
        found: dict[ir.Node, Form] = {}
        if self.bits == MIXED:
            free = [op for op in ops if op.at and op.node not in bits]
            found = dict.fromkeys([op.node for op in ops if not op.at], REFERENCE)
            found |= mixed_forms(model, free, ctx, self.block)
        known: dict[tuple[int | bool, ...], Form] = {}
        for op in ops:
            if op.node in found:
                continue
            width = bits.get(op.node, self._usual)
            whole = op.shared or not op.at or is_standard(ctx.target)
            about = (op.at, op.out_channels, op.in_channels, width, whole)
            if about not in known:
                w = op.matrix()[0] if op.at else op.array()
                sizes = (self.block,) if self.block else sizes_of(w.shape[1], whole)
                known[about] = form_of(w, width, sizes)
            found[op.node] = known[about]
        return found

    def _widths(self, model: ir.Model, ctx: Context, bits: Mapping[ir.Node, int]) -> set[int]:
        """The bits that products may come to have in the standard form."""
        silent = Context(model, target=ctx.target, shapes=ctx.shapes)
        found = {bits.get(op.node, self._usual) for op in self._wanted(model, silent, bits)}
        both = self.bits == MIXED and found and ctx.target.opset >= OPSETS[2]
        return found | {2} if both else found

    def _wanted(self, model: ir.Model, ctx: Context, bits: Mapping[ir.Node, int]) -> list[Linear]:
        """The products to replace."""
        found = []
        tables = [n for n in _tables(model, ctx) if bits.get(n) != 0]
        for node in model.graph:
            op = linear_of(node) if node.op_type in ("MatMul", "Gemm") else ""
            if isinstance(op, str) or not reads_floats(op):
                continue
            reason = "layers= says so" if bits.get(node) == 0 else ""
            rank = ctx.get(shapes).rank(op.x)
            reason = reason or self._why_not(op, rank, tables)
            if rank and not reason and is_standard(ctx.target):
                width = bits.get(node, self._usual)
                reason = why_not_standard(op, width, self._least, ctx.target)
                reason = reason or why_clipped(op, rank)
            if reason:
                ctx.refuse(self, node, f"{reason}: it stays as it is")
            elif ctx.edit(self, node):
                found.append(op)
        return found

    def _lookups(
        self, model: ir.Model, ctx: Context, bits: Mapping[ir.Node, int], wanted: Sequence[Linear]
    ) -> list[Linear]:
        """The lookups to replace, where tables are read by them and by `wanted` alone."""
        for node in candidates(model.graph) if is_standard(ctx.target) else ():
            reason = "the standard looks up no rows of a few bits: its table stays as it is"
            ctx.refuse(self, node, reason)
        tables = _tables(model, ctx)
        packed = {n for n in tables if bits.get(n) != 0} | {op.node for op in wanted}
        found = []
        for node, op in tables.items():
            reason = "layers= says so" if node not in packed else ""
            reason = reason or why_not(op, self._least, packed)
            if reason:
                ctx.refuse(self, node, f"{reason}: it stays as it is")
            elif ctx.edit(self, node):
                found.append(op)
        return found

    def _mixtures(
        self, model: ir.Model, ctx: Context, bits: Mapping[ir.Node, int]
    ) -> dict[ir.Node, Form]:
        """The mixtures of experts to replace, and the form of all matrices of each."""
        found: dict[ir.Node, Form] = {}
        for node in filter(is_mixture, model.graph if EXPERTS in ctx.target.operators else ()):
            width = bits.get(node, self._usual)
            reason = why_no_experts(node, self.block) if width else "layers= says so"
            block = block_of(node, self.block)
            if reason or block is None:
                ctx.refuse(self, node, f"{reason}: it stays as it is")
            elif ctx.edit(self, node):
                found[node] = Form(width, block)
        return found

    def _why_not(self, op: Linear, rank: int | None, tables: Sequence[ir.Node]) -> str:
        if rank is None or rank < 2:
            return "what it multiplies is not known to have rows"
        if op.out_channels * op.in_channels < SMALLEST or op.in_channels < self._least:
            return "its matrix is small"
        if op.shared and not tied(op, tables, self._least):
            return "its matrix is read elsewhere too"
        if not np.isfinite(op.array()).all():
            return "its matrix is not finite"
        return ""


def _share(made: ir.Node, rows: Callable[[], Array], rounded: bool) -> float:
    """Share of rows whose answer is the same as without rounding what is multiplied."""
    return agreement(made, rows()) if rounded else 1.0


def _tables(model: ir.Model, ctx: Context) -> dict[ir.Node, Linear]:
    """The lookups that the target can make of packed rows; the standard form has none."""
    can = LOOKUP in ctx.target.operators and not is_standard(ctx.target)
    return candidates(model.graph) if can else {}
