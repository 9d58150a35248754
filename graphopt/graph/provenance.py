"""Provenance: on every touched node, which source nodes it came from and which passes made it.

`graphopt.from` holds source node names, `graphopt.by` pass names, both joined by spaces (node
names with spaces are percent-encoded). A node without either key is a source node, untouched.
`graphopt.why` says in words what a pass made of it, as "pass: what".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from urllib.parse import quote, unquote

import onnx_ir as ir

from graphopt.graph.traverse import all_nodes

__all__ = [
    "BY",
    "CERTIFICATE",
    "FROM",
    "KEPT",
    "RECIPE",
    "TRIMMED",
    "WHY",
    "derive",
    "explain",
    "made_by",
    "mark",
    "sources",
    "strip",
    "trim",
    "why",
]

FROM, BY, WHY = "graphopt.from", "graphopt.by", "graphopt.why"
KEPT, RECIPE = "graphopt.kept", "graphopt.recipe"
#: Hashes of source and result, and what is known of the edits between (`graphopt.proving`).
CERTIFICATE = "graphopt.certificate"
#: Set on a model whose nodes' provenance was left out to keep the file small.
TRIMMED = "graphopt.trimmed"
#: Names that percent-encoding leaves as they are: most, and encoding takes long.
_PLAIN = re.compile(r"[\w/:.\[\](),;@$#!*'+=&?~-]+", re.ASCII)
#: The largest share of a file that provenance may take.
SHARE = 0.05


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


def explain(nodes: Iterable[ir.Node], text: str) -> None:
    """Record on `nodes` what was made of them, as "pass: what"."""
    for node in nodes:
        node.metadata_props[WHY] = text


def why(node: ir.Node) -> str:
    """What a pass said it made of `node`, or ""."""
    return node.metadata_props.get(WHY, "")


def strip(model: ir.Model) -> None:
    """Remove every provenance and recipe entry that graphopt wrote."""
    for node in all_nodes(model.graph):
        for key in (FROM, BY, WHY):
            node.metadata_props.pop(key, None)
    for key in (CERTIFICATE, KEPT, RECIPE, TRIMMED):
        model.metadata_props.pop(key, None)


def trim(model: ir.Model, size: int) -> bool:
    """Keep provenance within its share of `size` bytes; True if something had to go.

    What a user can do without goes first: the nodes' provenance (all of it, so that no touched node
    passes for a source node), then the kept indices. The recipe stays.
    """
    allowed = SHARE * size
    stores = [n.metadata_props for n in all_nodes(model.graph)]
    if _spent([*stores, model.metadata_props]) <= allowed:
        return False
    for store in stores:
        for key in (FROM, BY):
            store.pop(key, None)
        if WHY in store:  # which pass it was tells a second run what is done already
            store[WHY] = store[WHY].partition(": ")[0]
    model.metadata_props[TRIMMED] = "nodes"
    if _spent([model.metadata_props]) > allowed:
        model.metadata_props.pop(KEPT, None)
    return True


def _spent(stores: Iterable[MutableMapping[str, str]]) -> int:
    """Bytes that our entries take in the file: text, field tags and lengths."""
    keys = (FROM, BY, WHY, CERTIFICATE, KEPT, RECIPE)
    return sum(len(k) + len(s[k].encode()) + 10 for s in stores for k in keys if k in s)


def _write(node: ir.Node, origin: Iterable[str], by: Iterable[str]) -> None:
    text = " ".join(
        n if _PLAIN.fullmatch(n) else quote(n, safe="/:.[](),;@$#!*'+=&?~") for n in origin
    )
    if text:
        node.metadata_props[FROM] = text
    else:
        node.metadata_props.pop(FROM, None)
    node.metadata_props[BY] = " ".join(by)
