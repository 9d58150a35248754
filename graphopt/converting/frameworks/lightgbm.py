"""LightGBM: boosters in .txt files, through onnxmltools."""

from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert; a classifier gives a label and probabilities as one tensor."""
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = lightgbm.Booster(model_file=path)
    columns = [("x", FloatTensorType([None, model.num_feature()]))]
    made = convert_lightgbm(model, initial_types=columns, zipmap=False)
    labelled = len(made.graph.output) > 1
    if labelled:  # the converter declares one label, however many rows there are
        made.graph.output[0].type.tensor_type.ClearField("shape")
        made.graph.output[0].type.tensor_type.shape.dim.add()
    with open(onnx_path, "wb") as file:
        file.write(made.SerializeToString())

    def predict(feeds: Any) -> list[Any]:
        found = model.predict(feeds["x"])
        if not labelled:
            return [found]
        return [found.argmax(1) if found.ndim == 2 else (found > 0.5).astype(int), found]

    return predict
