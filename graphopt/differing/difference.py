"""`graphopt diff`: two models node by node, weight by weight, in metadata and interface."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import onnx_ir as ir

from graphopt.differing.fates import Explained, explain
from graphopt.differing.flow import Flow
from graphopt.differing.matching import Match, match
from graphopt.differing.regions import Region
from graphopt.differing.weights import Weights, compare_weights

__all__ = ["Difference", "difference"]

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between two models.

    Attributes:
        match: which node is which.
        before, after: what became of every node of the first, and of the second model.
        regions: nodes that gave way to others.
        weights: tensors side by side.
        metadata, interface: what differs, by name: as it was, and as it is (None: absent).
    """

    match: Match
    before: list[Explained]
    after: list[Explained]
    regions: list[Region]
    weights: Weights
    metadata: dict[str, tuple[str | None, str | None]]
    interface: dict[str, tuple[str | None, str | None]]

    @property
    def structure(self) -> Counter[str]:
        """Nodes by what became of them: "added" and the second model's "replaced" count there."""
        found = Counter(e.fate for e in self.before)
        found["added"] = sum(e.fate == "added" for e in self.after)
        return Counter({k: n for k, n in found.items() if n})

    @property
    def equal(self) -> bool:
        """Whether structure, weights, metadata and interface are the same; names may differ."""
        fates = {e.fate for e in (*self.before, *self.after)}
        weights = self.weights
        parts = (weights.changed, weights.gone, weights.new, self.metadata, self.interface)
        return fates <= {"same"} and not any(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data: `{schema, equal, structure, before, after, weights, metadata, interface}`."""
        a, b = self.match.a, self.match.b
        return {
            "schema": SCHEMA,
            "equal": self.equal,
            "structure": dict(self.structure),
            "before": _nodes(a, b, self.before, self.match.how),
            "after": _nodes(b, a, self.after, [""] * len(b.nodes)),
            "weights": dataclasses.asdict(self.weights),
            "metadata": {k: list(v) for k, v in self.metadata.items()},
            "interface": {k: list(v) for k, v in self.interface.items()},
        }


def difference(a: ir.Model, b: ir.Model) -> Difference:
    """Compare two models; in time linear in their nodes, edges and bytes of weights."""
    found = match(a, b)
    before, after, regions = explain(found)
    sides = [_metadata(m) for m in (a, b)]
    faces = [_interface(m) for m in (a, b)]
    return Difference(
        found,
        before,
        after,
        regions,
        compare_weights(found),
        _unequal(*sides),
        _unequal(*faces),
    )


def _nodes(flow: Flow, other: Flow, fates: list[Explained], how: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "node": name,
            "operator": node.op_type,
            "fate": e.fate,
            "kind": e.kind,
            "reason": e.reason,
            "others": [other.names[k] for k in e.others],
            "by": list(e.by),
            **({"told_by": told} if told else {}),
        }
        for node, name, e, told in zip(flow.nodes, flow.names, fates, how, strict=True)
    ]


def _unequal(a: dict[str, str], b: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    names = dict.fromkeys([*a, *b])
    return {n: (a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n)}


def _metadata(model: ir.Model) -> dict[str, str]:
    found = {
        "graph name": model.graph.name,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "documentation": model.doc_string,
    }
    return {k: v for k, v in found.items() if v} | dict(model.metadata_props)


def _interface(model: ir.Model) -> dict[str, str]:
    found = {"IR version": str(model.ir_version)}
    found |= {f"opset {k or 'ai.onnx'}": str(v) for k, v in model.graph.opset_imports.items()}
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for place, value in enumerate(values):
            if value.name not in model.graph.initializers:
                dtype = value.dtype.name if value.dtype is not None else str(value.type)
                shape = "any shape" if value.shape is None else _dims(value.shape)
                found[f"{kind} {value.name}"] = f"{dtype} {shape}, number {place + 1}"
    for key in model.functions:
        found[f"function {':'.join(filter(None, key))}"] = "defined"
    return found


def _dims(shape: ir.Shape) -> str:
    return "x".join(str(d) for d in shape) or "scalar"
