"""Sizes of convolutions and poolings: the same function of the same sizes has one name.

Shape inference makes up a new unknown for each such size; two graphs that compute the same have
the same one only if it is named by what it follows from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.proving.terms import Term

__all__ = ["own_unknowns", "shareable", "window_sizes"]

_POOLS = ("AveragePool", "LpPool", "MaxPool")


def window_sizes(
    op: str, attributes: Mapping[str, Any], args: Sequence[Term | None]
) -> list[Any] | None:
    """What each spatial size follows from, equal where the sizes are; None for other operators."""
    op = op.removeprefix("com.microsoft:Fused")
    x = args[0] if args else None
    if op not in (*_POOLS, "Conv", "ConvTranspose") or x is None or x.dims is None:
        return None
    spatial = len(x.dims) - 2
    if op in _POOLS:
        kernel = tuple(attributes.get("kernel_shape", ()))
    else:
        w = args[1] if len(args) > 1 else None
        kernel = () if w is None or w.dims is None else w.dims[2:]
    if len(kernel) != spatial or attributes.get("output_shape"):
        return None
    pads = attributes.get("pads") or (0,) * (2 * spatial)
    strides = attributes.get("strides") or (1,) * spatial
    dilations = attributes.get("dilations") or (1,) * spatial
    auto = attributes.get("auto_pad", "NOTSET")
    found: list[Any] = []
    for k, d in enumerate(x.dims[2:]):
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            found.append((op == "ConvTranspose", d, strides[k], kernel[k], dilations[k], auto))
        elif op == "ConvTranspose":
            more = (attributes.get("output_padding") or (0,) * spatial)[k]
            found.append(
                (d, strides[k], kernel[k], dilations[k], more - pads[k] - pads[k + spatial])
            )
        else:
            padded = d + pads[k] + pads[k + spatial]
            rounds_up = attributes.get("ceil_mode", 0) and (pads[k], pads[k + spatial])
            found.append((padded, kernel[k], strides[k], dilations[k], rounds_up))
    return [(op == "ConvTranspose", *key) for key in found]


#: Unknowns that one analysis made up.
_OWN = re.compile(r"\?\d|~")


def own_unknowns(dims: tuple[Dim, ...]) -> int:
    """How many sizes are unknowns that an analysis made up."""
    return sum(not isinstance(d, int) and not shareable(d) for d in dims)


def shareable(e: Expr) -> bool:
    """Whether an expression means the same in both graphs: no unknown of one analysis is in it."""
    return not any(_OWN.search(a) for a in e.atoms)
