"""scikit-learn: estimators and pipelines in .joblib, .pkl and .skops files, through skl2onnx."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Where pipelines, tables and unions hold (name, model, ...).
_STEPS = ("steps", "transformers_", "transformer_list")


def convert(path: str, onnx_path: str) -> Any:
    """Convert; probabilities are one tensor, and columns that are text stay text."""
    import skl2onnx
    from sklearn.base import is_classifier

    _take_truth_values()
    _take_missing_values()
    model = _opened(path)
    for part in _parts(model):
        _told(part)
    columns = _columns(model)
    zips = is_classifier(model) and hasattr(model, "predict_proba")
    options = {id(model): {"zipmap": False}} if zips else None
    made = skl2onnx.convert_sklearn(
        model, initial_types=columns, options=options, target_opset=_opset()
    )
    with open(onnx_path, "wb") as file:
        file.write(made.SerializeToString())
    names = [name for name, _ in columns]
    documents = _reads_documents(model)

    def predict(feeds: Any) -> list[Any]:
        if names == ["X"]:
            table = feeds["X"].ravel() if documents else feeds["X"]
        else:
            import pandas as pd

            table = pd.DataFrame({n: feeds[n].ravel() for n in names})
        if hasattr(model, "predict_proba"):
            return [model.predict(table), model.predict_proba(table)]
        if hasattr(model, "predict"):
            return [model.predict(table)]
        return [model.transform(table)]

    return predict


def _opened(path: str) -> Any:
    if path.endswith(".skops"):
        import skops.io

        types = skops.io.get_untrusted_types(file=path)
        foreign = [t for t in types if not t.startswith("sklearn.")]
        if foreign:
            raise ValueError(
                f"it holds objects that are not scikit-learn's own ({', '.join(foreign[:3])}): "
                "write it with joblib and name that file with --trust pickle"
            )
        return skops.io.load(path, trusted=types)
    import joblib

    return joblib.load(path)


def _take_truth_values() -> None:
    """Let skl2onnx 1.20 write missing values' ways: onnx takes whole numbers there, no booleans."""
    from skl2onnx.common import _container

    make = _container.make_node

    def written(*args: Any, **attributes: Any) -> Any:
        for name, value in attributes.items():
            if isinstance(value, list) and any(isinstance(v, (bool, np.bool_)) for v in value):
                attributes[name] = [int(v) for v in value]
        return make(*args, **attributes)

    _container.make_node = written


def _take_missing_values() -> None:
    """Let skl2onnx 1.20 write where trees send missing values: it does of histograms alone."""
    from skl2onnx.common import tree_ensemble
    from skl2onnx.operator_converters import decision_tree

    write: Any = tree_ensemble.add_tree_to_attribute_pairs
    populate = decision_tree.populate_tree_attributes

    def written(pairs: Any, is_classifier: Any, tree: Any, *args: Any, **named: Any) -> Any:
        found = write(pairs, is_classifier, tree, *args, **named)
        _send_missing(pairs, tree)
        return found

    def populated(model: Any, *args: Any) -> Any:
        pairs = populate(model, *args)
        _send_missing(pairs, model.tree_)
        return pairs

    decision_tree.populate_tree_attributes = populated
    name = write.__name__
    for module in [m for k, m in sys.modules.items() if k.startswith("skl2onnx.")]:
        if getattr(module, name, None) is write:
            setattr(module, name, written)


def _send_missing(pairs: Any, tree: Any) -> None:
    goes = [int(k) for k in tree.missing_go_to_left]
    pairs["nodes_missing_value_tracks_true"][-len(goes) :] = goes


def _parts(model: Any) -> Iterator[Any]:
    """The model, and the fitted models that it is made of."""
    yield model
    inner = [step[1] for name in _STEPS for step in getattr(model, name, ())]
    for name in ("estimators_", "estimator_", "final_estimator_", "regressor_"):
        inner += list(np.ravel(np.array(getattr(model, name, ()), dtype=object)))
    for part in inner:
        yield from _parts(part)


def _told(part: Any) -> None:
    """Let a model say what skl2onnx 1.20 understands, in place; what it computes stays."""
    kind = type(part).__name__
    if kind == "HistGradientBoostingRegressor":
        # a matrix of one number, which skl2onnx 1.20 writes as such
        part._baseline_prediction = part._baseline_prediction.ravel()
    elif kind == "KBinsDiscretizer" and part.encode == "onehot":
        part.encode = "onehot-dense"  # ONNX has no sparse tensors
    elif kind == "VotingClassifier":
        part.flatten_transform = False  # matters to what `transform` gives, which is not converted
    elif kind == "SimpleImputer" and part.statistics_.dtype.kind == "O":
        part.missing_values = ""  # ONNX has no missing text but the empty one


def _opset() -> dict[str, int]:
    from skl2onnx import __max_supported_opset__

    return {"": min(__max_supported_opset__, 21), "ai.onnx.ml": 3}


def _columns(model: Any) -> list[tuple[str, Any]]:
    """One input for a matrix; one for each column of a table where a step chooses by name."""
    from skl2onnx.common import data_types

    if _reads_documents(model):
        return [("X", data_types.StringTensorType([None, 1]))]
    names = getattr(model, "feature_names_in_", None)
    steps = list(_transformers(model))
    if names is None or not steps:
        return [("X", data_types.FloatTensorType([None, int(model.n_features_in_)]))]
    known: dict[Any, set[str]] = {}
    for step in steps:
        for column, kind in _kinds(step, list(names)):
            known.setdefault(column, set()).add(kind)

    def of(name: Any) -> Any:
        kinds = known.get(name, set())
        if "text" in kinds:
            return data_types.StringTensorType([None, 1])
        if kinds == {"whole"}:
            return data_types.Int64TensorType([None, 1])
        return data_types.FloatTensorType([None, 1])

    return [(str(n), of(n)) for n in names]


def _reads_documents(model: Any) -> bool:
    """Whether the first step of a model counts words."""
    while hasattr(model, "steps"):
        model = model.steps[0][1]
    return hasattr(model, "vocabulary_")


def _transformers(model: Any) -> Iterator[Any]:
    """The steps of a ColumnTransformer in front: (name, transformer, columns)."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    if isinstance(model, Pipeline):
        model = model.steps[0][1]
    if isinstance(model, ColumnTransformer):
        yield from model.transformers_


def _kinds(step: Any, names: list[Any]) -> Iterator[tuple[Any, str]]:
    """What a step takes each of its columns for: "text", "whole" numbers, or "number"."""
    _, transformer, columns = step
    if isinstance(transformer, str) and transformer == "drop":
        return
    if isinstance(columns, slice) or np.asarray(columns).dtype.kind in "bi":
        chosen = list(np.atleast_1d(np.array(names, object)[columns]))
    else:
        chosen = list(np.atleast_1d(columns))
    parts = [s for _, s in getattr(transformer, "steps", [("", transformer)])]
    learnt = next((found for p in parts if (found := _learnt(p, len(chosen)))), [])
    for k, column in enumerate(chosen):
        yield column, learnt[k] if k < len(learnt) else "number"


def _learnt(part: Any, columns: int) -> list[str]:
    """What a fitted model has seen in each of its columns, where it tells."""
    if hasattr(part, "vocabulary_") or (
        hasattr(part, "statistics_") and part.statistics_.dtype.kind == "O"
    ):
        return ["text"] * columns
    kinds = [known.dtype.kind for known in getattr(part, "categories_", ())]
    return ["text" if k in "OUS" else "whole" if k in "iu" else "number" for k in kinds]
