"""Bit allocation: of each product the form that is fastest at the error of 4 bits in blocks of 32.

    minimize    sum t(l, form)
    subject to  sum F(l) r(l, form)^2  <=  sum F(l) r(l, 4 bits in blocks of 32)^2

t is the time of one row on the target (where nothing is timed, bytes stand for it), r the relative
error of the rounded matrix, and F what errors of it add to the divergence of the outputs
(`graphopt.calibration.fisher`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.weight_only.blocks import Form, relative_error, stored_bits
from graphopt.passes.weight_only.levels import LEVELS

from graphopt.analyses.linear import Linear
from graphopt.calibration.fisher import fisher
from graphopt.context import Context, Pair
from graphopt.knapsack import lower_hull, marginal_steps, slope

__all__ = ["mixed_forms"]

#: What products choose from, and whose error and time all are measured by.
FORMS: tuple[Form, ...] = ((2, 64), (2, 128), (4, 32), (4, 64), (4, 128), (8, 128))
REFERENCE: Form = (4, 32)


def mixed_forms(ops: Sequence[Linear], ctx: Context, block: int | None) -> dict[ir.Node, Form]:
    """Bits and block of each product; with `block` only the bits are chosen.

    Raises:
        UsageError: the context has no samples.
        MissingExtra: torch is not installed.
    """
    harm = fisher(ctx)
    hulls: dict[ir.Node, list[tuple[float, float, Form]]] = {}
    limit = spent = 0.0
    for op in ctx.track(ops, len(ops), "measuring what bits do"):
        w, row = op.matrix()[0], op.in_channels
        share = harm[op.node.name or ""].weight
        errors = {form: share * relative_error(w, form) ** 2 for form in FORMS if form[1] <= row}
        errors[REFERENCE] = share * relative_error(w, REFERENCE) ** 2
        limit += errors[REFERENCE]
        hulls[op.node] = lower_hull(
            [
                (w.size * _time(op, form, ctx), error, form)
                for form, error in errors.items()
                if block in (None, form[1])
            ]
        )
        spent += hulls[op.node][0][1]
    at = dict.fromkeys(hulls, 0)
    full: set[ir.Node] = set()

    def price(node: ir.Node) -> float | None:
        k, hull = at[node], hulls[node]
        return None if node in full or k + 1 == len(hull) else slope(hull[k], hull[k + 1])

    for node in marginal_steps(hulls, price):
        k, hull = at[node], hulls[node]
        more = hull[k + 1][1] - hull[k][1]
        if spent + more > limit:
            full.add(node)
        else:
            spent, at[node] = spent + more, k + 1
    found = {node: hulls[node][k][2] for node, k in at.items()}
    counts = Counter(found.values())
    told = ", ".join(f"{n} of {b} bits in blocks of {s}" for (b, s), n in sorted(counts.items()))
    ctx.note(f"products chose: {told}")
    return found


def _time(op: Linear, form: Form, ctx: Context) -> float:
    """Time of a row in this form over that in 4 bits by 32."""
    n, k = op.out_channels, op.in_channels
    assert op.dtype is not None
    dtype = op.dtype.numpy()
    if form == REFERENCE:
        return 1.0
    level = LEVELS[ctx.target.int8 is not None]

    def pair() -> Pair:
        x = np.random.default_rng(0).standard_normal((1, k)).astype(dtype)
        return _product(n, k, REFERENCE, dtype, level), _product(n, k, form, dtype, level), {"x": x}

    what = f"MatMulNBits 1x{k} by {n}x{k} {op.dtype.name} {form[0]} bits by {form[1]}"
    ratio = ctx.faster(what, pair)
    bits, own = (stored_bits(f, k, dtype) for f in (REFERENCE, form))
    return own / bits if ratio is None else ratio


def _product(n: int, k: int, form: Form, dtype: Any, level: int) -> ir.Model:
    """One product with random weights."""
    bits, block = form
    blocks = -(-k // block)
    rng = np.random.default_rng(0)
    arrays = {
        "q": rng.integers(256, size=(n, blocks, block * bits // 8), dtype=np.uint8),
        "scale": np.full((n, blocks), 1 / k, dtype),
        "zero": rng.integers(256, size=(n, -(-blocks * bits // 8)), dtype=np.uint8),
    }
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    x = ir.val("x", kind, [1, k])
    held = [ir.val(name, const_value=ir.Tensor(a, name=name)) for name, a in arrays.items()]
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": level}
    node = ir.node("MatMulNBits", [x, *held], attributes, domain="com.microsoft", name="y")
    (y,) = node.outputs
    y.name, y.type, y.shape = "y", ir.TensorType(kind), ir.Shape([1, n])
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=held, opset_imports={"": 21, node.domain: 1}
    )
    return ir.Model(graph, ir_version=10)
