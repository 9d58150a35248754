"""`graphopt.view`: a model's page from Python; in a notebook it shows itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.formats import load
from graphopt.io.reading import from_proto
from graphopt.page.model import model_page
from graphopt.pipeline.prepare import named
from graphopt.replacing import replace_files

__all__ = ["View", "view"]


@dataclasses.dataclass(frozen=True, repr=False)
class View:
    """A page, as bytes; a notebook shows it in a frame."""

    name: str
    page: bytes

    def save(self, path: str | Path) -> None:
        """Write the page. Raises UsageError or ModelError if it cannot be."""
        replace_files([(Path(path), [self.page])])

    def __repr__(self) -> str:
        return f"<View of {self.name}, {len(self.page):,} bytes>"

    def _repr_html_(self) -> str:
        inner = escape(self.page.decode(), quote=True)
        style = "width:100%;height:820px;border:0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{inner}"></iframe>'


def view(
    model: ir.Model | onnx.ModelProto | str | Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> View:
    """The page of a model: its graph, and what every layer costs.

    Args:
        model: an `onnx.ModelProto` or `onnx_ir.Model` (not changed), or what `graphopt.load` reads.
        shapes: concrete shapes of inputs with dynamic axes, at which costs are counted.

    Raises:
        ModelError: it cannot be read.
        UsageError: a shape that does not fit.
    """
    name = Path(model).name if isinstance(model, (str, Path)) else ""
    if isinstance(model, (str, Path)):
        model = load(model)
    elif isinstance(model, onnx.ModelProto):
        model = from_proto(model)
    model = named(model)
    given = {k: tuple(v) for k, v in (shapes or {}).items()}
    bound, _ = bind_shapes(model, given)
    name = name or model.graph.name or "model"
    return View(name, model_page(name, model, bound))
