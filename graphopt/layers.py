"""`layers=`: the value of a pass' strength for single layers, by patterns of node names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from typing import TypeVar

import onnx_ir as ir

from graphopt.errors import UsageError, nearest
from graphopt.graph.provenance import sources

__all__ = ["by_layer", "by_node", "names_of", "pattern_of"]

K = TypeVar("K")
V = TypeVar("V")


def by_layer(
    layers: Sequence[tuple[str, V]], known: Mapping[K, Collection[str]], owner: str
) -> dict[K, V]:
    """What `layers` says of each layer; layers that no pattern matches are left out.

    Args:
        layers: (pattern, value) pairs; `*` and `?` match as in file names, and of the patterns that
            match one of a layer's names the first counts.
        known: the names of every layer there is.
        owner: name of the pass, for the error.

    Raises:
        UsageError: a pattern matches nothing.
    """
    found: dict[K, V] = {}
    for pattern, value in layers:
        matched = [k for k, names in known.items() if any(fnmatchcase(n, pattern) for n in names)]
        if not matched:
            close = nearest(pattern, dict.fromkeys(n for names in known.values() for n in names))
            raise UsageError(
                f"{owner}: layers: '{pattern}' matches no name{close}; "
                "`*` stands for any part of one"
            )
        for k in matched:
            found.setdefault(k, value)
    return found


def by_node(
    layers: Sequence[tuple[str, V]], nodes: Iterable[ir.Node], owner: str
) -> dict[ir.Node, V]:
    """`by_layer` where every node is a layer."""
    return by_layer(layers, {n: names_of(n) for n in nodes}, owner) if layers else {}


def names_of(node: ir.Node) -> tuple[str, ...]:
    """The name of a node, and those that the nodes it was made of had in the source model."""
    return (node.name or "", *sources(node))


def pattern_of(node: ir.Node) -> str:
    """A pattern that matches what becomes of `node` in later passes, by its name in the source."""
    return escape(next(iter(sources(node)), "") or node.name or "")
