"""XGBoost: boosters in .json and .ubj files, through onnxmltools.

What onnxmltools 1.16 does not know or takes for something else is told to it in words that it
knows: a dart is a gradient booster whose trees have weights, and a model of several outputs, or
whose result is a function of the sum of its leaves, is a regression.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

SUM, SIGMOID, EXP, ABOVE_0 = (), ("Sigmoid",), ("Exp",), ("Sign", "Relu")
#: What becomes of the sums of leaves, by objectives that onnxmltools is told are a regression.
#: Others it knows, as long as there is one output.
RESULTS: dict[str, tuple[str, ...]] = {
    "binary:hinge": ABOVE_0,
    "binary:logitraw": SUM,
    "count:poisson": EXP,
    "rank:map": SUM,
    "rank:ndcg": SUM,
    "rank:pairwise": SUM,
    "reg:absoluteerror": SUM,
    "reg:gamma": EXP,
    "reg:logistic": SIGMOID,
    "reg:pseudohubererror": SUM,
    "reg:quantileerror": SUM,
    "reg:squarederror": SUM,
    "reg:squaredlogerror": SUM,
    "reg:tweedie": EXP,
    "survival:aft": EXP,
    "survival:cox": EXP,
}
#: The sum that a prediction stands for, by what becomes of sums.
SUMS: dict[tuple[str, ...], Callable[[float], float]] = {
    SIGMOID: lambda p: math.log(p / (1 - p)),
    EXP: math.log,
}


def convert(path: str, onnx_path: str) -> Any:
    """Convert; a classifier gives a label and probabilities, one of several labels the latter."""
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    try:
        model = xgboost.Booster(model_file=path)
    except xgboost.core.XGBoostError as error:
        said = str(error).partition("Stack trace:")[0].strip()
        raise ValueError(f"XGBoost does not read it: {said.rpartition(': ')[2]}") from error
    columns = [("x", FloatTensorType([None, model.num_features()]))]
    facts = _as_gbtree(json.loads(model.save_raw("json"))["learner"])
    objective, outputs = facts["objective"]["name"], int(facts["learner_model_param"]["num_target"])
    result = RESULTS.get(objective)
    if objective == "binary:logistic" and outputs > 1:
        result = SIGMOID
    if outputs > 1 and result is None:
        raise ValueError(f"its objective, '{objective}', is not known with several outputs")
    alike = xgboost.Booster(model_file=_told(facts, objective, result))
    alike.feature_names = None  # the converter takes columns by number
    made = convert_xgboost(alike, initial_types=columns)
    if result is not None:
        _finish(made, facts, result)
    elif objective.startswith("multi:"):
        _class_of_each_tree(made, facts)
    with open(onnx_path, "wb") as file:
        file.write(made.SerializeToString())
    labelled = len(made.graph.output) > 1

    def predict(feeds: Any) -> list[Any]:
        model.feature_names = model.feature_types = None
        rows = xgboost.DMatrix(feeds["x"])
        found = model.predict(rows)
        if objective == "multi:softmax":
            scores = np.exp(model.predict(rows, output_margin=True))
            return [found.astype(int), scores / scores.sum(1, keepdims=True)]
        if not labelled:
            return [found]
        return [found.argmax(1) if found.ndim == 2 else (found > 0.5).astype(int), found]

    return predict


def _as_gbtree(facts: Any) -> Any:
    """What the model's file says of it, a dart as the gradient booster that it is."""
    booster = facts["gradient_booster"]
    if booster["name"] == "dart":
        weights, booster = booster["weight_drop"], booster["gbtree"]
        for tree, weight in zip(booster["model"]["trees"], weights, strict=True):
            values = zip(tree["left_children"], tree["split_conditions"], strict=True)
            tree["split_conditions"] = [v * weight if k == -1 else v for k, v in values]
        facts["gradient_booster"] = {"name": "gbtree", "model": booster["model"]}
    elif booster["name"] != "gbtree":
        raise ValueError(f"its booster is '{booster['name']}', which has no trees")
    if any(int(t["tree_param"]["size_leaf_vector"]) > 1 for t in booster["model"]["trees"]):
        raise ValueError(
            "its leaves hold several outputs: train it with multi_strategy='one_output_per_tree'"
        )
    best = int(facts["attributes"].get("best_iteration", -1))
    if 0 <= best < len(booster["model"]["iteration_indptr"]) - 2:
        raise ValueError(
            f"it was stopped early, and XGBoost itself is of two minds about the trees after that: "
            f"save booster[:{best + 1}], or the booster without its attribute best_iteration"
        )
    return facts


def _told(facts: Any, objective: str, result: tuple[str, ...] | None) -> bytearray:
    """The model's file as the converter is given it."""
    told = json.loads(json.dumps(facts))
    told["attributes"] = {}
    if objective == "multi:softmax":  # it gives labels alone, and has probabilities
        told["objective"]["name"] = "multi:softprob"
    if result is not None:
        weight = {"scale_pos_weight": "1"}
        told["objective"] = {"name": "reg:squarederror", "reg_loss_param": weight}
        told["learner_model_param"] |= {"num_target": "1", "base_score": "[0E0]"}
        model = told["gradient_booster"]["model"]
        model["tree_info"] = [0] * len(model["tree_info"])
    return bytearray(json.dumps({"learner": told, "version": [3, 0, 0]}).encode())


def _class_of_each_tree(made: Any, facts: Any) -> None:
    """Which class each tree adds to: the converter takes one tree a class and round for granted."""
    of_tree = facts["gradient_booster"]["model"]["tree_info"]
    held = {a.name: a for node in made.graph.node for a in node.attribute}
    held["class_ids"].ints[:] = [of_tree[t] for t in held["class_treeids"].ints]


def _finish(made: Any, facts: Any, result: tuple[str, ...]) -> None:
    """Which output each tree adds to, what is added to all, and what becomes of the sums."""
    import onnx
    from finishing import then

    (node,) = made.graph.node
    held = {a.name: a for a in node.attribute}
    of_tree = facts["gradient_booster"]["model"]["tree_info"]
    outputs = int(facts["learner_model_param"]["num_target"])
    start = json.loads(facts["learner_model_param"]["base_score"])
    base = start if isinstance(start, list) else [start] * outputs
    if result in SUMS:
        base = [SUMS[result](p) for p in base]
    given = {
        "n_targets": outputs,
        "target_ids": [of_tree[t] for t in held["target_treeids"].ints],
        "base_values": [float(b) for b in base],
    }
    kept = [a for a in node.attribute if a.name not in given]
    del node.attribute[:]
    node.attribute.extend(kept + [onnx.helper.make_attribute(*pair) for pair in given.items()])
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = outputs
    for op in result:  # ONNX Runtime passes over what a regressor's post_transform says
        then(made, op)
