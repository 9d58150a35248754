"""XGBoost: boosters in .json and .ubj files, through onnxmltools."""

import json
from typing import Any

import numpy as np


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
        rows = xgboost.DMatrix(feeds["x"])
        found = model.predict(rows)
        if _objective(model) == "multi:softmax":  # which gives labels alone
            scores = np.exp(model.predict(rows, output_margin=True))
            return [found.astype(int), scores / scores.sum(1, keepdims=True)]
        if not labelled:
            return [found]
        return [found.argmax(1) if found.ndim == 2 else (found > 0.5).astype(int), found]

    return predict


def _objective(model: Any) -> str:
    facts = json.loads(model.save_config())
    return str(facts["learner"]["objective"]["name"])


def _known(model: Any) -> Any:
    """The booster as the converter knows it.

    A ranker's score is a number like a regression's; one that gives labels has probabilities too.
    """
    import xgboost

    facts = json.loads(model.save_raw("json"))
    booster = facts["learner"]["gradient_booster"]["name"]
    if booster != "gbtree":
        raise ValueError(f"its booster is '{booster}', and onnxmltools knows 'gbtree' alone")
    objective = facts["learner"]["objective"]
    if objective["name"].startswith("rank:"):
        weight = {"scale_pos_weight": "1"}
        facts["learner"]["objective"] = {"name": "reg:squarederror", "reg_loss_param": weight}
    elif objective["name"] == "multi:softmax":
        objective["name"] = "multi:softprob"
    else:
        return model
    alike = xgboost.Booster(model_file=bytearray(json.dumps(facts).encode()))
    alike.feature_names = None
    return alike
