"""ncnn: `.param` and `.bin` files by pnnx, for phones and boards.

ncnn knows no batch: its networks take one item, and a session runs the items of a batch in turn.
Its files know neither names nor whole shapes; these stand in `NAME.io.json` beside them.
"""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from graphopt.backends.devices.device import Device
from graphopt.backends.devices.forms import FOR_NCNN, in_plain_forms
from graphopt.backends.devices.items import batch_of, one_item
from graphopt.backends.devices.names import Names, read_names, write_names
from graphopt.backends.devices.ncnn_int8 import write_integers
from graphopt.backends.devices.process import run_program
from graphopt.backends.devices.quantized import SYMMETRIC, in_floats, rounding_data_alone

from graphopt.backend import Arrays
from graphopt.errors import ModelError
from graphopt.formats import save
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "Ncnn", "NcnnSession"]


@dataclasses.dataclass(frozen=True)
class Ncnn(Device):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "ncnn"
    suffix: ClassVar[str] = ".param"
    packages: ClassVar[tuple[str, ...]] = ("ncnn", "pnnx")
    extra: ClassVar[str] = "ncnn"
    apart: ClassVar[bool] = True
    exact: ClassVar[float] = 1e-3  # its exp and tanh are approximations
    #: Data int8 without zero point, weights int8 a scale per channel; results are floats.
    int8: ClassVar[Int8Scheme | None] = SYMMETRIC

    def prepared(self, model: ir.Model) -> ir.Model:
        """Without the roundings of results, which ncnn's layers give as floats."""
        return rounding_data_alone(model)

    def convert(self, model: ir.Model, target: Target, path: Path) -> None:
        """Write both files by pnnx, and the names and shapes beside them."""
        spec = find_spec("pnnx")
        assert spec is not None
        assert spec.origin is not None
        source = path.with_suffix(".onnx")
        floats, layers = in_floats(model)
        batch = batch_of(floats)
        item = one_item(floats, batch) if batch > 1 else None
        plain = in_plain_forms(floats if item is None else item, *FOR_NCNN)
        save(plain, source)
        before = set(path.parent.iterdir())
        given = {"ncnnparam": path, "ncnnbin": path.with_suffix(".bin")}
        command = [Path(spec.origin).with_name("pnnx"), source, "fp16=0"]
        run_program([*command, *(f"{k}={v}" for k, v in given.items())], path.parent, "pnnx")
        if not path.exists():
            raise ModelError("pnnx does not convert it, and says nothing of it")
        made = set(path.parent.iterdir()) - before
        for file in (source, *(made - {path, path.with_suffix(".bin")})):
            file.unlink()
        if layers:
            write_integers(path, plain, layers)
        write_names(model, path, items=batch)

    def check(self, model: ir.Model, target: Target, made: Path) -> None:
        """As every device; pnnx tells not whether it took a leading axis for a batch."""
        try:
            super().check(model, target, made)
        except ModelError:
            if batch_of(model) == 1:
                raise
            write_names(model, made, items=1)
            super().check(model, target, made)

    def open(self, path: Path, target: Target) -> NcnnSession:
        """Open the files on the CPU, in float32."""
        import ncnn

        raw = ncnn.Net()
        raw.opt.num_threads = max(target.threads, 1)
        for kind in ("packed", "storage", "arithmetic"):
            setattr(raw.opt, f"use_fp16_{kind}", False)
        raw.opt.use_bf16_storage = False
        names = read_names(path, self.name)
        if raw.load_param(str(path)) or raw.load_model(str(path.with_suffix(".bin"))):
            raise ModelError(f"{path.name} does not open for '{self.name}': {_unknown(path)}")
        return NcnnSession(raw, names)


class NcnnSession:
    """A model in ncnn; `raw` is its network."""

    def __init__(self, raw: Any, names: Names) -> None:
        self.raw = raw
        self.inputs, self.outputs = list(names["inputs"]), list(names["outputs"])
        self._shapes = {name: fact["shape"] for name, fact in names["outputs"].items()}
        self._items: int = names["items"]

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once, item by item: arrays by input name in, arrays by output name out."""
        items = [self._item(feeds, k) for k in range(self._items)]
        made = {}
        for j, name in enumerate(self.outputs):
            whole = np.stack([item[j] for item in items])
            if whole.size != np.prod(self._shapes[name]):
                raise ModelError(f"ncnn gives '{name}' another shape than the model")
            made[name] = whole.reshape(self._shapes[name])
        return made

    def _item(self, feeds: Arrays, k: int) -> list[np.ndarray[Any, Any]]:
        import ncnn

        with self.raw.create_extractor() as extractor:
            for j, name in enumerate(self.inputs):
                array = np.asarray(feeds[name])
                array = array[k] if self._items > 1 or array.shape[:1] == (1,) else array
                kind = np.int32 if array.dtype.kind in "iub" else np.float32
                extractor.input(f"in{j}", ncnn.Mat(np.ascontiguousarray(array, kind)).clone())
            made = []
            for j, name in enumerate(self.outputs):
                code, result = extractor.extract(f"out{j}")
                if code:
                    raise ModelError(f"ncnn cannot compute '{name}' (code {code})")
                made.append(np.array(result))
            return made


def _unknown(path: Path) -> str:
    """Why a file does not open: the layers that it names and ncnn has not."""
    import ncnn

    try:
        lines = path.read_text().splitlines()[2:]
    except (OSError, UnicodeDecodeError):
        lines = []
    kinds = dict.fromkeys(line.split()[0] for line in lines if line.split())
    absent = [kind for kind in kinds if ncnn.layer_to_index(kind) < 0]
    return f"ncnn has no layer {', '.join(absent)}" if absent else "it is no network of ncnn"


BACKEND = Ncnn()
