"""XGBoost: boosters in .json and .ubj files, through onnxmltools."""

from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert; a classifier gives a label and probabilities."""
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = xgboost.Booster(model_file=path)
    columns = [("x", FloatTensorType([None, model.num_features()]))]
    model.feature_names = None  # the converter takes columns by number
    made = convert_xgboost(model, initial_types=columns)
    with open(onnx_path, "wb") as file:
        file.write(made.SerializeToString())
    labelled = len(made.graph.output) > 1

    def predict(feeds: Any) -> list[Any]:
        found = model.predict(xgboost.DMatrix(feeds["x"]))
        if not labelled:
            return [found]
        return [found.argmax(1) if found.ndim == 2 else (found > 0.5).astype(int), found]

    return predict
