"""What `graphopt.optimize` gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir

from graphopt.backend import backend_of
from graphopt.deploy.manifest import Manifest, check_manifest, write_manifest
from graphopt.errors import BudgetMissed
from graphopt.formats import save
from graphopt.io.replacing import alone_in
from graphopt.pipeline.recipe import Recipe
from graphopt.reporting.records import Report
from graphopt.reporting.text import report_text
from graphopt.target import Target

__all__ = ["Result"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What `optimize` gives: the model, the report, and the recipe that makes it again.

    `manifest` says how the model was opened when it was chosen among targets; None where there was
    one target, which opens it in its own way.
    """

    model: ir.Model
    report: Report
    recipe: Recipe
    target: Target
    manifest: Manifest | None = None

    @property
    def met(self) -> bool:
        """Whether every limit of the budget is met (True without limits)."""
        return self.report.met is not False

    def __str__(self) -> str:
        """The table and notes that the command line prints, as plain text."""
        return report_text(self.report)

    def lower(self, path: str | Path) -> Path:
        """Write the model at `path` for its target, with the manifest that opens it there."""
        path, backend = Path(path), backend_of(self.target)
        check_manifest(path)
        with alone_in(path.parent):  # another run's manifest must not come to lie beside this model
            if backend is None:
                save(self.model, path)
                return path
            made = backend.lower(self.model, self.target, path)
            if self.manifest is not None:
                write_manifest(made, self.manifest)
        return made

    def require(self) -> Result:
        """Return self, or raise BudgetMissed naming the limits that are not met."""
        if not self.met:
            raise BudgetMissed("; ".join(self.report.notes) or "the budget is not met")
        return self
