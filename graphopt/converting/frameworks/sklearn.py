"""scikit-learn: estimators and pipelines in .joblib, .pkl and .skops files, through skl2onnx."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def convert(path: str, onnx_path: str) -> Any:
    """Convert; probabilities are one tensor, and columns that are text stay text."""
    import skl2onnx

    _take_truth_values()
    model = _opened(path)
    for part in _parts(model):
        if type(part).__name__ == "HistGradientBoostingRegressor":
            # a matrix of one number, which skl2onnx 1.20 writes as such
            part._baseline_prediction = part._baseline_prediction.ravel()
    columns = _columns(model)
    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    made = skl2onnx.convert_sklearn(
        model, initial_types=columns, options=options, target_opset=_opset()
    )
    with open(onnx_path, "wb") as file:
        file.write(made.SerializeToString())
    names = [name for name, _ in columns]

    def predict(feeds: Any) -> list[Any]:
        if names == ["X"]:
            table = feeds["X"]
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


def _parts(model: Any) -> Iterator[Any]:
    """The model, and the fitted models that it is made of."""
    yield model
    inner = [step for _, step in getattr(model, "steps", ())]
    for name in ("estimators_", "estimator_", "final_estimator_", "regressor_"):
        inner += list(np.ravel(np.array(getattr(model, name, ()), dtype=object)))
    for part in inner:
        yield from _parts(part)


def _opset() -> dict[str, int]:
    from skl2onnx import __max_supported_opset__

    return {"": min(__max_supported_opset__, 21), "ai.onnx.ml": 3}


def _columns(model: Any) -> list[tuple[str, Any]]:
    """One input for a matrix; one for each column of a table where a step chooses by name."""
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    names = getattr(model, "feature_names_in_", None)
    steps = list(_transformers(model))
    if names is None or not steps:
        return [("X", FloatTensorType([None, int(model.n_features_in_)]))]
    text = {c for step in steps for c in _texts(step, list(names))}
    return [
        (str(n), StringTensorType([None, 1]) if n in text else FloatTensorType([None, 1]))
        for n in names
    ]


def _transformers(model: Any) -> Iterator[Any]:
    """The steps of a ColumnTransformer in front: (name, transformer, columns)."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    if isinstance(model, Pipeline):
        model = model.steps[0][1]
    if isinstance(model, ColumnTransformer):
        yield from model.transformers_


def _texts(step: Any, names: list[Any]) -> Iterator[Any]:
    """Columns that an encoder learnt as text."""
    _, transformer, columns = step
    parts = [s for _, s in getattr(transformer, "steps", [("", transformer)])]
    chosen = [names[c] if isinstance(c, int) else c for c in np.atleast_1d(columns)]
    for part in parts:
        known = getattr(part, "categories_", ())
        yield from (c for c, k in zip(chosen, known, strict=False) if k.dtype.kind in "OUS")
