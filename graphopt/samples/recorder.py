"""Recording samples: run a program and keep what it feeds each model of ONNX Runtime.

    python recorder.py FOLDER MOST PROGRAM.py [ARGUMENT...]

Runs as a process of its own (`graphopt record`), and needs only what the program itself needs.
Of more than MOST runs each is as likely to be kept as any other (reservoir sampling; Vitter 1985),
so that neither memory nor disk grows with how long the program runs.
"""

from __future__ import annotations

import hashlib
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Recorder", "main"]


class Recorder:
    """The folder that runs of one model are kept in: `000.npz` and so on, one file a run.

    Args:
        folder: made with the first run.
        most: how many files there may be.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.runs = folder, most, 0
        self._random = random.Random(0)

    def add(self, feeds: dict[str, Any]) -> None:
        """Keep one run, or not."""
        place = self.runs if self.runs < self.most else self._random.randrange(self.runs + 1)
        self.runs += 1
        if place < self.most:
            self.folder.mkdir(parents=True, exist_ok=True)
            np.savez(self.folder / f"{place:0{len(str(self.most - 1))}d}.npz", **feeds)


def main(argv: list[str]) -> None:
    """Wrap `onnxruntime.InferenceSession`, then run the program as `python PROGRAM.py` would."""
    folder, most, program, *arguments = argv
    _wrap(Path(folder).resolve(), int(most))
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).resolve().parent)
    runpy.run_path(program, run_name="__main__")


def _wrap(folder: Path, most: int) -> None:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_inference_collection as collection

    real = onnxruntime.InferenceSession
    recorders: dict[str, Recorder] = {}

    class Session(real):  # type: ignore[misc, valid-type]
        def __init__(self, path_or_bytes: Any, *args: Any, **options: Any) -> None:
            super().__init__(path_or_bytes, *args, **options)
            key, name = _named(path_or_bytes)
            taken = {r.folder.name for k, r in recorders.items() if k != key}
            while name in taken:
                name += "_"
            self._recorder = recorders.setdefault(key, Recorder(folder / name, most))
            self._types = {i.name: i.type for i in self.get_inputs()}

        def run(self, output_names: Any, input_feed: Any, *rest: Any, **options: Any) -> Any:
            given = {k: _array(v, self._types.get(k, "")) for k, v in input_feed.items()}
            self._recorder.add(given)
            return super().run(output_names, input_feed, *rest, **options)

    onnxruntime.InferenceSession = Session
    collection.InferenceSession = Session


def _named(model: Any) -> tuple[str, str]:
    """What tells a model from others, and what its folder is called."""
    if isinstance(model, bytes):
        digest = hashlib.sha256(model).hexdigest()
        return digest, f"model-{digest[:8]}"
    return str(Path(model).resolve()), Path(model).stem


def _array(value: Any, kind: str) -> Any:
    """What was fed as an array; lists get the input's type, such as `tensor(int32)`."""
    if hasattr(value, "numpy") and not isinstance(value, np.ndarray):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value
    name = kind.removeprefix("tensor(").removesuffix(")")
    known = {"float": "float32", "double": "float64", "string": "str"}
    return np.array(value, known.get(name, name or None))


if __name__ == "__main__":
    main(sys.argv[1:])
