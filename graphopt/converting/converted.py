"""Formats of other frameworks: Keras, scikit-learn, XGBoost, LightGBM, TensorFlow, Paddle, JAX.

Each is read by its own converter, in a process of its own, and compared with what the framework
itself computes; see `graphopt.formats`.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.converting.checks import check_against_framework
from graphopt.converting.mending import mend_16_bits, mend_pools
from graphopt.converting.process import Converter, converter
from graphopt.errors import GraphOptError, MissingExtra, ModelError, UsageError
from graphopt.io.reading import NOTES, SOURCE, Source, from_proto

__all__ = [
    "JAX", "KERAS", "LIGHTGBM", "PADDLE", "PICKLE", "SKOPS", "TENSORFLOW", "XGBOOST", "Converted",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Converted:
    """Models of one framework; see `graphopt.formats.Format`.

    Attributes:
        framework: the name of its script and of its extra.
        title: its name for people.
        pickle: reading a file runs what it says.
        backends: of the framework, one of which is enough: the first whose converter is right.
        variable: what chooses among them in the environment; set already, it has chosen.
    """

    framework: str
    title: str
    pickle: bool = False
    backends: tuple[str, ...] = ("",)
    variable: str = ""

    def load(self, path: str) -> ir.Model:
        """Convert, and compare with the framework's own outputs."""
        with self.opened(path) as (model, _):
            return model

    @contextmanager
    def opened(self, path: str) -> Iterator[tuple[ir.Model, Converter]]:
        """The converted model, and the framework's, to be asked meanwhile."""
        file = Path(path.rpartition(":")[0] if path.rpartition(":")[0].endswith(".py") else path)
        if not file.exists():
            raise ModelError("no such file")
        chosen = os.environ.get(self.variable, "")
        faults: list[GraphOptError] = []
        for backend in (chosen,) if chosen else self.backends:
            with ExitStack() as stack:
                try:
                    model, source = self._converted(path, backend, stack)
                except (MissingExtra, ModelError) as error:
                    faults.append(error)
                    continue
                status = file.stat()
                same = frozenset({(status.st_dev, status.st_ino)})
                model.graph.meta[SOURCE] = Source(file, same)
                yield model, source
                return
        told = [e for e in faults if not isinstance(e, MissingExtra)]
        said = dict.fromkeys(map(str, told))
        if len(said) < 2:
            raise (told or faults)[0]
        raise ModelError("; ".join(said))

    def _converted(self, path: str, backend: str, stack: ExitStack) -> tuple[ir.Model, Converter]:
        title = f"{self.title} on {backend}" if backend else self.title
        environment = {self.variable: backend} if backend else {}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
        source = stack.enter_context(converter(self.framework, title, path, folder, environment))
        model = from_proto(onnx.load(folder / "model.onnx"))
        notes = mend_pools(model) + mend_16_bits(model)
        notes.append(check_against_framework(model, source, title))
        told = model.graph.meta.get(NOTES, ())
        model.graph.meta[NOTES] = (f"Converted from {title}.", *notes, *told)
        return model, source

    def save(self, model: ir.Model, path: Path, *, external: bool | None = None) -> None:
        """Refuse: models are written as ONNX or PyTorch programs."""
        raise UsageError(f"{path}: models are not written for {self.title}; name an .onnx file")


JAX = Converted("jax", "JAX")
KERAS = Converted(
    "keras", "Keras", backends=("jax", "torch", "tensorflow"), variable="KERAS_BACKEND"
)
LIGHTGBM = Converted("lightgbm", "LightGBM")
PADDLE = Converted("paddle", "PaddlePaddle")
PICKLE = Converted("sklearn", "scikit-learn", pickle=True)
SKOPS = Converted("sklearn", "scikit-learn")
TENSORFLOW = Converted("tensorflow", "TensorFlow")
XGBOOST = Converted("xgboost", "XGBoost")
