"""Result: what `graphopt.optimize` gives, and the files that `write` makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from graphopt.backend import Backend, backend_of
from graphopt.context import Progress, silent
from graphopt.deploy.manifest import (
    Manifest,
    check_manifest,
    manifest_path,
    read_manifest,
    sign,
    write_manifest,
)
from graphopt.deploy.processors import processors
from graphopt.errors import BudgetMissed, GraphOptError
from graphopt.formats import load, save
from graphopt.graph.provenance import strip
from graphopt.io.writing import place_weights, weights_beside
from graphopt.measuring.session_options import ROWS, Tuned, tune
from graphopt.pipeline.recipe import Recipe
from graphopt.replacing import alone_in
from graphopt.reporting.records import Report
from graphopt.reporting.text import report_text
from graphopt.target import Target

__all__ = ["Result", "Written"]


@dataclasses.dataclass(frozen=True)
class Written:
    """What `Result.write` made: the files, the model's first, and the report that names it."""

    files: tuple[Path, ...]
    report: Report


@dataclasses.dataclass(frozen=True)
class Result:
    """What `optimize` gives: the model, the report, and the recipe that makes it again.

    Attributes:
        manifest: how the model was opened when it was chosen among targets; None where there was
            one target, which opens it in its own way.
        tuned: seconds and input shapes to try session options with when it is written; None for a
            result that was not measured.
        missed: the limits of the budget that are not met, a sentence each.
    """

    model: ir.Model
    report: Report
    recipe: Recipe
    target: Target
    manifest: Manifest | None = None
    tuned: tuple[float, Mapping[str, tuple[int, ...]]] | None = None
    missed: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether every limit of the budget is met (True without limits)."""
        return self.report.met is not False

    def __str__(self) -> str:
        """The table and notes that the command line prints, as plain text."""
        return report_text(self.report)

    def __repr__(self) -> str:
        return f"<Result {self.report}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def write(
        self,
        path: str | Path,
        *,
        closest: bool = False,
        strip_provenance: bool = False,
        external: bool | None = None,
        progress: Progress | None = None,
    ) -> Written:
        """Write the model at `path` for its target, with the manifest that opens it there.

        Session options that make it faster on this machine go into the manifest, if the result was
        measured.

        Args:
            path: an .onnx file, or what another format's name ends in (.pt2 for PyTorch).
            closest: write a result that misses the budget, which is the closest that was found.
            strip_provenance: leave recipe and provenance out.
            external: put weights into `NAME.onnx.data`; None: if they are too large for one file.
            progress: called with (text, done, total).

        Raises:
            BudgetMissed: the budget is missed, and `closest` is False.
            UsageError, ModelError: as `graphopt.save`.
        """
        if not closest:
            self.require()
        path = Path(path)
        model = self.model if external is None else place_weights(self.model, external)
        if strip_provenance:
            model = model.clone()
            strip(model)
        backend = backend_of(self.target)
        tried: Sequence[Tuned] = ()
        notes: list[str] = []
        progress = progress or silent
        progress(f"writing {path.name}", 0, 0)
        if backend is None or path.suffix in (".pt2", ".gopt"):
            save(model, path)
        else:
            check_manifest(path)
            with alone_in(path.parent):  # where no other run's manifest comes to lie beside it
                path = backend.lower(model, self.target, path)
                if self.manifest is not None:
                    write_manifest(path, self.manifest)
            tried, notes = self._tune(path, progress)
            notes += _fallen(backend, path)
            if strip_provenance:
                sign(path)
        files = [path, path.with_name(f"{path.name}.data")] if weights_beside(model) else [path]
        if (how := read_manifest(path)) is not None:
            files += [path.with_name(name) for name in how.files]
        weight = sum(f.stat().st_size for f in files if f.is_file())
        after = dataclasses.replace(self.report.after, bytes=weight)
        report = dataclasses.replace(
            self.report,
            output=str(path),
            after=after,
            tuned=tuple(
                {"option": t.option, "ratio": t.timing.ratio, "ci": t.timing.ci, "kept": t.kept}
                for t in tried
            ),
            notes=(*self.report.notes, *notes),
        )
        files.append(manifest_path(path))
        return Written(tuple(f for f in files if f.is_file()), report)

    def require(self) -> Result:
        """Return self, or raise BudgetMissed naming the limits that are not met."""
        if not self.met:
            raise BudgetMissed("; ".join(self.missed))
        return self

    def _tune(self, path: Path, progress: Progress) -> tuple[Sequence[Tuned], list[str]]:
        """Put session options that help the model here into its manifest; those tried, notes."""
        known = self.target.suffix == ".onnx" and read_manifest(path) is not None
        if self.tuned is None or not self.target.measured or not known:
            return (), []
        seconds, shapes = self.tuned
        try:
            tried = tune(
                path, target=self.target, shapes=shapes, seconds=seconds, progress=progress
            )
        except (GraphOptError, OSError) as error:  # the model is written, and good as it is
            return (), [f"session options were not tried: {error}"]
        kept = [t for t in tried if t.kept]
        gains = [
            f"{t.option} ({1 / t.timing.ratio:.2f} times as fast)"
            for t in kept
            if not t.option.startswith(ROWS)
        ]
        where = manifest_path(path).name
        notes = [f"session options that help here: {', '.join(gains)}; {where}"] if gains else []
        how = read_manifest(path)
        threads = (how.threads if how else 0) or processors()
        notes += [_most_rows(t, threads) + f"; {where}" for t in kept if t.option.startswith(ROWS)]
        return tried, notes


def _most_rows(tried: Tuned, threads: int) -> str:
    """How many rows at once give trees the most rows a second here."""
    alone, among = (1e3 / ms for ms in (tried.timing.a_ms, tried.timing.b_ms))
    on = f"{threads} thread{'s' * (threads > 1)}"
    rows = tried.option.removeprefix(ROWS)
    return f"trees: {among:,.0f} rows a second, {rows} at once on {on} (one by one {alone:,.0f})"


def _fallen(backend: Backend, path: Path) -> list[str]:
    """What a device that is known from data alone leaves to the CPU of the model at `path`."""
    check = getattr(backend, "falls_off", None)
    if check is None:
        return []
    model = load(path)
    count, falls = sum(n.op_type != "Constant" for n in model.graph), len(check(model))
    told = f"{falls} of {count} nodes fall off the device; graphopt targets {path.name} says why"
    return [told] if falls else []
