"""What is told of a factored layer, and why another was left alone."""

from __future__ import annotations

from graphopt.passes.svd.layers import Layer
from graphopt.passes.svd.plan import Curve, Finished
from graphopt.passes.svd.stages import Candidate

__all__ = ["describe", "ranks_of", "too_small", "why_not"]


def describe(spec: str, made: Finished) -> str:
    """The sentence that reports and provenance carry."""
    layer, form = made.layer, made.candidate
    return (
        f"{spec}: {layer.weight_name} ({layer.rows}x{layer.columns}) as {form.scheme} factors of "
        f"rank {ranks_of(form)}, relative output error {made.error**0.5:.3g}"
    )


def ranks_of(candidate: Candidate) -> str:
    """Its ranks as text."""
    return "x".join(map(str, candidate.ranks))


def why_not(curve: Curve, allowed: float, of: str) -> str:
    """Why no candidate was good enough."""
    best = min((c.error for c in curve.candidates), default=1.0)
    return (
        f"no factors that save {of} keep {1 - allowed:.4g} of the energy: "
        f"the best keep {1 - best:.4g}"
    )


def too_small(layer: Layer, of: str) -> str:
    """Why no rank saves anything."""
    if of == "macs" and all(u.lookup for u in layer.uses):
        return 'a lookup multiplies nothing, factors would add work (of="params" counts its size)'
    if layer.shared:
        return "its weight is read by other nodes too and would stay in the file"
    return f"a {layer.rows}x{layer.columns} matrix has no rank whose factors save {of}"
