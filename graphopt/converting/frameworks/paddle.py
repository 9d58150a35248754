"""PaddlePaddle: programs in .pdmodel or .json files beside .pdiparams, through paddle2onnx."""

import os
from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert what `paddle.jit.save` or `paddle.static.save_inference_model` wrote."""
    import numpy as np
    import paddle
    import paddle2onnx

    stem = os.path.splitext(path)[0]
    weights = stem + ".pdiparams"  # is not there where there are none
    held = weights if os.path.exists(weights) else ""
    paddle2onnx.export(path, held, onnx_path, opset_version=17)
    model = paddle.jit.load(stem)
    model.eval()

    def predict(feeds: Any) -> list[Any]:
        made = model(*[paddle.to_tensor(x) for x in feeds.values()])
        return [np.asarray(x) for x in (made if isinstance(made, (list, tuple)) else [made])]

    return predict
