"""XGBoost: boosters in .json and .ubj files, through onnxmltools."""

import json
from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert; a classifier gives a label and probabilities."""
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = xgboost.Booster(model_file=path)
    columns = [("x", FloatTensorType([None, model.num_features()]))]
    model.feature_names = None  # the converter takes columns by number
    made = convert_xgboost(_known(model), initial_types=columns)
    with open(onnx_path, "wb") as file:
        file.write(made.SerializeToString())
    labelled = len(made.graph.output) > 1

    def predict(feeds: Any) -> list[Any]:
        found = model.predict(xgboost.DMatrix(feeds["x"]))
        if not labelled:
            return [found]
        return [found.argmax(1) if found.ndim == 2 else (found > 0.5).astype(int), found]

    return predict


def _known(model: Any) -> Any:
    """The booster as the converter knows it: a ranker's score is a number like a regression's."""
    import xgboost

    facts = json.loads(model.save_raw("json"))
    booster = facts["learner"]["gradient_booster"]["name"]
    if booster != "gbtree":
        raise ValueError(f"its booster is '{booster}', and onnxmltools knows 'gbtree' alone")
    if not facts["learner"]["objective"]["name"].startswith("rank:"):
        return model
    facts["learner"]["objective"] = {
        "name": "reg:squarederror",
        "reg_loss_param": {"scale_pos_weight": "1"},
    }
    scorer = xgboost.Booster(model_file=bytearray(json.dumps(facts).encode()))
    scorer.feature_names = None
    return scorer
