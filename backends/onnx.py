"""Plain standard ONNX, for any consumer: no operator outside the standard, nothing beside the file.

What consumes it is unknown, so nothing is measured. Sessions run in ONNX Runtime's CPU provider.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from graphopt.backends.ort import node_times, open_for, time_models

from graphopt.backend import Arrays, Timing
from graphopt.deploy.manifest import Manifest
from graphopt.deploy.sessions import OpenVinoSession, OrtSession
from graphopt.errors import ModelError
from graphopt.formats import save
from graphopt.target import ONNX, Target

__all__ = ["BACKEND", "Onnx"]

#: The domains that the ONNX standard defines.
STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training"})


@dataclasses.dataclass(frozen=True)
class Onnx:
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

    def session(
        self, path: Path, target: Target, *, beside: bool = False
    ) -> OrtSession | OpenVinoSession:
        """Open the model in ONNX Runtime's CPU provider."""
        return open_for(path, Manifest(target.name), beside=beside)

    def measure(self, a: Path, b: Path, feeds: Arrays, target: Target, seconds: float) -> Timing:
        """Time two models on the same feeds in interleaved pairs."""
        return time_models(a, b, Manifest(target.name), feeds, seconds)

    def profile(self, path: Path, feeds: Arrays, target: Target) -> dict[str, float]:
        """Milliseconds per node as ONNX Runtime ran it."""
        return node_times(path, Manifest(target.name), feeds)


def foreign_operators(model: ir.Model) -> list[str]:
    """`domain:Operator (node name)` of nodes neither in the standard nor functions of the model."""
    own = {(f.domain, f.name) for f in model.functions.values()}
    return [
        f"{n.domain}:{n.op_type} (node '{n.name}')"
        for n in model.graph.all_nodes()
        if n.domain not in STANDARD and (n.domain, n.op_type) not in own
    ]


BACKEND = Onnx()
