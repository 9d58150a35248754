"""Samples run once for all layers: second moments of what each layer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from graphopt.passes.svd.layers import Layer, Use
from graphopt.passes.svd.moments import Moments, moments_of
from graphopt.passes.svd.stages import Candidate

from graphopt.context import Context
from graphopt.samples import Samples

__all__ = ["again", "observed", "samples_of"]


def samples_of(ctx: Context) -> Samples | None:
    """The samples, unless they were drawn at random: noise says nothing about a layer's inputs."""
    return None if ctx.samples is None or ctx.samples.synthetic else ctx.samples


def observed(
    layers: Sequence[Layer], ctx: Context
) -> Iterator[tuple[Layer, Mapping[Use, Moments] | None]]:
    """Every layer, with what samples show of its inputs (None where they show nothing)."""
    seen = set[Layer]()
    samples = samples_of(ctx)
    if samples is not None:
        for layer, moments in moments_of(ctx.model, layers, samples, ctx.seed):
            seen.add(layer)
            yield layer, moments
    for layer in layers:
        if layer not in seen:
            yield layer, None


def again(
    choice: Mapping[Layer, Candidate], ctx: Context
) -> Iterator[tuple[Layer, Mapping[Use, Moments] | None]]:
    """The chosen layers; those whose factors need it are observed a second time."""
    inside = [la for la, c in choice.items() if c.scheme != "channel"]
    yield from observed(inside, ctx)
    yield from ((la, None) for la, c in choice.items() if c.scheme == "channel")
