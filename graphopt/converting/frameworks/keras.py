"""Keras 3: .keras files on the backend that KERAS_BACKEND names."""

import re
import zipfile
from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert by `Model.export`, in float32, axes of unknown size dynamic."""
    import keras
    import numpy as np

    if not zipfile.is_zipfile(path):
        raise ValueError("it is no whole .keras file: write one by model.save('NAME.keras')")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (TypeError, ValueError) as error:
        raise ValueError(_told(" ".join(str(error).split()))) from error
    sizes = [[3 if d is None else d for d in x.shape] for x in model.inputs]
    some = [np.zeros(s, x.dtype) for s, x in zip(sizes, model.inputs, strict=True)]
    model(some[0] if len(some) == 1 else some, training=False)  # none that has not run is exported
    if keras.config.backend() == "jax":
        from jax_scans import scan_forwards

        scan_forwards()
    model.export(onnx_path, format="onnx", verbose=False)
    import onnx

    names = [i.name for i in onnx.load(onnx_path, load_external_data=False).graph.input]

    def predict(feeds: Any) -> list[Any]:
        arrays = [feeds[n] for n in names]
        made = model(arrays[0] if len(arrays) == 1 else arrays, training=False)
        return [np.asarray(keras.ops.convert_to_numpy(x)) for x in keras.tree.flatten(made)]

    return predict


def _told(text: str) -> str:
    """What keeps a file from being read without the code that it came from, and what to do."""
    unknown = re.search(r"Could not locate (class|function) '([^']+)'", text)
    if unknown:
        what = f"its {unknown[1]} '{unknown[2]}' is defined elsewhere"
    elif "Python lambda" in text:
        what = "a Lambda layer of it holds Python code, which is not run"
    else:
        return f"Keras does not read it: {text[:300]}"
    return f"{what}: where the model is at hand, write model.export('NAME.onnx', format='onnx')"
