"""Plain standard ONNX, for any consumer: no operator outside the standard, nothing beside the file.

What consumes it is unknown, so nothing is measured. Sessions run in ONNX Runtime's CPU provider.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from graphopt.backends.ort import OrtBackend

from graphopt.deploy.manifest import Manifest
from graphopt.errors import ModelError
from graphopt.formats import save
from graphopt.target import ONNX, Target

__all__ = ["BACKEND", "Onnx"]

#: The domains that the ONNX standard defines.
STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training"})


@dataclasses.dataclass(frozen=True)
class Onnx(OrtBackend):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "onnx"

    def targets(self) -> Sequence[str]:
        """One target: the standard."""
        return (ONNX.name,)

    def target(self, name: str) -> Target:
        """`graphopt.target.ONNX`, lowered here."""
        return dataclasses.replace(ONNX, backend=self.name)

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the model. Raises ModelError for operators that are not in the standard."""
        foreign = foreign_operators(model)
        if foreign:
            raise ModelError(
                f"{len(foreign)} operators are not standard ONNX: {'; '.join(foreign[:5])}. "
                "Name the target that has them"
            )
        save(model, path)
        return path

    def how(self, path: Path, target: Target) -> Manifest:
        """As every model for `target`."""
        return Manifest(target.name)


def foreign_operators(model: ir.Model) -> list[str]:
    """`domain:Operator (node name)` of nodes neither in the standard nor functions of the model."""
    own = {(f.domain, f.name) for f in model.functions.values()}
    return [
        f"{n.domain}:{n.op_type} (node '{n.name}')"
        for n in model.graph.all_nodes()
        if n.domain not in STANDARD and (n.domain, n.op_type) not in own
    ]


BACKEND = Onnx()
