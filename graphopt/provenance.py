"""Provenance: on every touched node, which source nodes it came from and which passes made it.

`graphopt.from` holds source node names, `graphopt.by` pass names, both joined by spaces (node
names with spaces are percent-encoded). A node without either key is a source node, untouched.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote

import onnx_ir as ir

__all__ = ["BY", "FROM", "KEPT", "RECIPE", "derive", "made_by", "mark", "sources", "strip"]

FROM, BY = "graphopt.from", "graphopt.by"
KEPT, RECIPE = "graphopt.kept", "graphopt.recipe"


def sources(node: ir.Node) -> tuple[str, ...]:
    """Names of the source model's nodes that `node` came from."""
    if FROM in node.metadata_props:
        return tuple(unquote(n) for n in node.metadata_props[FROM].split())
    if BY in node.metadata_props or not node.name:
        return ()
    return (node.name,)


def made_by(node: ir.Node) -> tuple[str, ...]:
    """Names of the passes that made or changed `node`, in order."""
    return tuple(node.metadata_props.get(BY, "").split())


def mark(node: ir.Node, pass_name: str) -> None:
    """Record that `pass_name` changed `node` in place."""
    if not pass_name:
        return
    origin, by = sources(node), made_by(node)
    _write(node, origin, by if pass_name in by else (*by, pass_name))


def derive(new: Iterable[ir.Node], old: Iterable[ir.Node], pass_name: str) -> None:
    """Record that the nodes `new` stand where the nodes `old` stood, by `pass_name`."""
    origin: dict[str, None] = {}
    by: dict[str, None] = {}
    for node in old:
        origin.update(dict.fromkeys(sources(node)))
        by.update(dict.fromkeys(made_by(node)))
    if pass_name:
        by[pass_name] = None
    for node in new:
        _write(node, origin, by)


def strip(model: ir.Model) -> None:
    """Remove every provenance and recipe entry that graphopt wrote."""
    for node in model.graph.all_nodes():
        for key in (FROM, BY):
            node.metadata_props.pop(key, None)
    for key in (KEPT, RECIPE):
        model.metadata_props.pop(key, None)


def _write(node: ir.Node, origin: Iterable[str], by: Iterable[str]) -> None:
    node.metadata_props[FROM] = " ".join(quote(n, safe="/:.[](),;@$#!*'+=&?~") for n in origin)
    node.metadata_props[BY] = " ".join(by)
