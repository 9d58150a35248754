"""JAX: `FILE.py:FUNCTION`, which returns a function and its example inputs, through jax2onnx."""

import importlib.util
import os
import sys
from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert `(function, inputs)`; sizes of an input that are text are dynamic.

    An input is an array, or (shape, dtype) with names for the axes that may have any size.
    """
    import jax
    import jax2onnx
    import numpy as np
    from jax_scans import scan_forwards

    scan_forwards()
    file, _, name = path.rpartition(":")
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    spec: Any = importlib.util.spec_from_file_location("user_code", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function, inputs = getattr(module, name)()
    specs = []
    for one in inputs:
        if isinstance(one, tuple):
            specs.append(jax.ShapeDtypeStruct(tuple(one[0]), np.dtype(one[1])))
        else:
            specs.append(jax.ShapeDtypeStruct(np.shape(one), np.asarray(one).dtype))
    jax2onnx.to_onnx(function, inputs=specs, return_mode="file", output_path=onnx_path)

    def predict(feeds: Any) -> list[Any]:
        made = function(*feeds.values())
        return [np.asarray(x) for x in jax.tree_util.tree_leaves(made)]

    return predict
