"""Latency of a factored layer beside the layer, timed on the target.

The layer is cut out with its own weight and the shapes it runs at, and timed against the same cut
after the edit (`Context.faster`), by shape, so that equal layers are timed once. What is known of
one rank answers others: fewer ranks of a faster pair are faster too, more of a slower one slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from graphopt.passes.svd.factorize import replace
from graphopt.passes.svd.layers import Layer, find
from graphopt.passes.svd.plan import Finished

from graphopt.context import FASTER, Context, Pair
from graphopt.measuring.parts import cut_out

__all__ = ["is_faster"]


def is_faster(made: Finished, ctx: Context, seen: Sequence[int] = ()) -> bool | None:
    """Whether the factors run faster on `ctx.target`; None where it cannot be measured.

    Args:
        made: the layer and its factors.
        ctx: times, or knows the answer.
        seen: the shape of the layer's input in a sample, for sizes the model leaves open.
    """
    layer, candidate = made.layer, made.candidate
    place = _place(layer.uses[0].x, seen)
    if place is None:
        return None
    kind = f"{_kind(layer, candidate.scheme, place)} rank "
    said = _implied(ctx, kind, candidate.ranks)
    if said is not None:
        return said

    def pair() -> Pair | None:
        use = layer.uses[0]
        dtype = use.x.dtype or ir.DataType.FLOAT
        outputs = use.node.outputs[:1]

        def form(value: ir.Value) -> tuple[Sequence[int], ir.DataType] | None:
            return (place, dtype) if value is use.x else None

        cut = cut_out(ctx.model, [use.node], outputs, form, below=layer.rows)
        if cut is None:
            return None
        after = cut[0].clone()
        inner = find(after, Context(after), "svd")
        if not inner:
            return None
        replace(after, inner[0], made.stages, {}, why="svd: timed")
        return cut[0], after, cut[1]

    ratio = ctx.faster(kind + "x".join(map(str, candidate.ranks)), pair)
    return None if ratio is None else ratio < 1


def _implied(ctx: Context, kind: str, ranks: tuple[int, ...]) -> bool | None:
    for what, ratio in ctx.facts.get(FASTER, {}).items():
        if not what.startswith(kind):
            continue
        other = tuple(int(r) for r in what.removeprefix(kind).split("x"))
        if ratio < 1 and all(r <= o for r, o in zip(ranks, other, strict=True)):
            return True
        if ratio >= 1 and all(r >= o for r, o in zip(ranks, other, strict=True)):
            return False
    return None


def _kind(layer: Layer, scheme: str, place: Sequence[int]) -> str:
    use = layer.uses[0]
    attributes = ",".join(
        f"{a.name}={a.value}" for a in sorted(use.node.attributes.values(), key=lambda a: a.name)
    )
    size = "x".join(map(str, place))
    form = f"{use.node.op_type}[{attributes}]{'left' if use.left else ''}"
    return f"{form} {size} by {layer.rows}x{layer.columns} {scheme}"


def _place(value: ir.Value, seen: Sequence[int]) -> list[int] | None:
    """The value's shape; of open sizes the first is 1 (the batch), others are as seen, or 1."""
    if value.shape is None:
        return list(seen) or None
    open_sizes = [None if isinstance(d, int) else d for d in value.shape]
    fallback = list(seen) if len(seen) == len(open_sizes) else [1] * len(open_sizes)
    if open_sizes and open_sizes[0] is not None:
        fallback[0] = 1
    return [d if isinstance(d, int) else f for d, f in zip(value.shape, fallback, strict=True)]
