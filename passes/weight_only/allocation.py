"""Bit allocation: of each product the form that is fastest at the error of 4 bits in blocks of 32.

    minimize    sum t(l, form)
    subject to  e(all forms)  <=  e(all in 4 bits in blocks of 32)

t is the time of one row on the target (where nothing is timed, bytes stand for it), e by how much
the outputs move on samples. Products are taken down one after another, by what each alone adds to e
for the time it saves: measured in 2 and in 4 bits in blocks of 128, for other forms by the squares
of what they do to its matrix. How far that may go is measured on all of them together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.weight_only.blocks import Form, form_of, relative_error, stored_bits
from graphopt.passes.weight_only.levels import LEVELS
from graphopt.passes.weight_only.standard import is_standard, why_not
from graphopt.passes.weight_only.writer import BlockWriter

from graphopt.analyses.linear import Linear, linear_of
from graphopt.calibration.sensitivity import movement
from graphopt.context import Context, Pair
from graphopt.errors import UsageError
from graphopt.execution.runtime import run_each
from graphopt.knapsack import lower_hull, marginal_steps, slope
from graphopt.target import Target

__all__ = ["REFERENCE", "mixed_forms"]

#: What products choose from, and whose time all are measured by.
FORMS = ((2, 64), (2, 128), (4, 32), (4, 64), (4, 128), (8, 128))
REFERENCE = Form(4, 32)
#: What is measured of each: forms of as many bits are taken from it, and 8 bits from the last.
MEASURED = (Form(2, 128), Form(4, 128))
#: Runs of samples that outputs are compared on.
RUNS = 2

Forms = Mapping[ir.Node, Form]


def mixed_forms(
    model: ir.Model, ops: Sequence[Linear], ctx: Context, block: int | None
) -> dict[ir.Node, Form]:
    """Bits and block of each product; with `block` only the bits are chosen.

    The errors of the standard form are those of the MatMulNBits that it becomes; bytes stand for
    its time, since a target without MatMulNBits cannot be given one to time.

    Raises:
        UsageError: the context has no samples.
    """
    if ctx.samples is None or ctx.samples.synthetic:
        raise UsageError("bits='mixed' is chosen by what the outputs do on samples: give --samples")
    feeds = list(islice(ctx.samples, RUNS))
    expected = list(run_each(model, feeds))

    def moved(forms: Forms) -> float:
        return movement(expected, run_each(_packed(model, forms, ctx), feeds))

    hulls: dict[ir.Node, list[tuple[float, float, Form]]] = {}
    uniform: dict[ir.Node, Form] = {}
    for op in ctx.track(ops, len(ops), "measuring what bits do to the outputs"):
        w = op.matrix()[0]
        known = [(moved({op.node: f}), relative_error(w, f)) for f in MEASURED]
        points = []
        for bits, size in FORMS:
            if block in (None, size) and _fits(op, bits, size, ctx.target):
                form = form_of(w, bits, (size,))
                error, own = known[bits > MEASURED[0].bits]
                error *= (relative_error(w, form) / max(own, 1e-30)) ** 2
                points.append((w.size * _time(op, form, ctx), error, form))
        hulls[op.node] = lower_hull(points or [(0.0, 0.0, REFERENCE)])
        uniform[op.node] = form_of(w, REFERENCE.bits, (REFERENCE.size,))
    at = dict.fromkeys(hulls, 0)

    def price(node: ir.Node) -> float | None:
        k, hull = at[node], hulls[node]
        return None if k + 1 == len(hull) else slope(hull[k], hull[k + 1])

    steps = []
    for node in marginal_steps(hulls, price):
        at[node] += 1
        steps.append(node)

    def after(count: int) -> dict[ir.Node, Form]:
        taken = Counter(steps[:count])
        return {node: hull[taken[node]][2] for node, hull in hulls.items()}

    limit = moved(uniform)
    low, high = 0, len(steps) + 1
    while high - low > 1:
        middle = (low + high) // 2
        ctx.progress("measuring mixtures of bits", middle, len(steps))
        low, high = (middle, high) if moved(after(middle)) <= limit else (low, middle)
    found = after(low)
    counts = Counter(found.values())
    told = ", ".join(f"{n} of {form}" for form, n in sorted(counts.items()))
    ctx.note(f"products chose: {told}")
    return found


def _packed(model: ir.Model, forms: Forms, ctx: Context) -> ir.Model:
    """A copy in which these products have these forms, rounded to the nearest."""
    clone = model.clone()
    writer = BlockWriter(clone, Context(clone, target=ctx.target))
    for node, same in list(zip(model.graph, clone.graph, strict=True)):
        op = linear_of(same) if node in forms else ""
        if isinstance(op, Linear):
            writer.replace(op, forms[node], None)
    return clone


def _fits(op: Linear, bits: int, block: int, target: Target) -> bool:
    """Whether rows are no shorter than a block; those of a table are whole blocks."""
    if is_standard(target):
        return not why_not(op, bits, block, target)
    return op.in_channels % block == 0 if op.shared else op.in_channels >= block


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

    what = f"MatMulNBits 1x{k} by {n}x{k} {op.dtype.name} {form}"
    ratio = None if is_standard(ctx.target) else ctx.faster(what, pair)
    bits, own = (stored_bits(f, k, dtype) for f in (REFERENCE, form))
    return own / bits if ratio is None else ratio


def _product(n: int, k: int, form: Form, dtype: Any, level: int) -> ir.Model:
    """One product with random weights."""
    bits, block, symmetric = form
    blocks = -(-k // block)
    rng = np.random.default_rng(0)
    arrays = {
        "q": rng.integers(256, size=(n, blocks, block * bits // 8), dtype=np.uint8),
        "scale": np.full((n, blocks), 1 / k, dtype),
    }
    if not symmetric:
        arrays["zero"] = rng.integers(256, size=(n, -(-blocks * bits // 8)), dtype=np.uint8)
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
