"""LightGBM: boosters in .txt files, through onnxmltools."""

from itertools import takewhile
from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert; a classifier gives a label and probabilities as one tensor."""
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = lightgbm.Booster(model_file=path)
    with open(path) as text:
        if any(line.strip() == "is_linear=1" for line in text):
            raise ValueError("its leaves hold linear models (linear_tree), which ONNX has not")
    columns = [("x", FloatTensorType([None, model.num_feature()]))]
    made = convert_lightgbm(model, initial_types=columns, zipmap=False)
    _scale(made, _factor(path, model))
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


def _factor(path: str, model: Any) -> float:
    """What scores are multiplied by, which onnxmltools 1.16 leaves out.

    A random forest (`boosting=rf`) averages its trees, and `sigmoid` is the slope of a classifier
    of two classes.
    """
    with open(path) as file:
        head = [line.strip() for line in takewhile(lambda line: line[:5] != "Tree=", file)]
    factor = 1.0
    if "average_output" in head:
        factor = model.num_model_per_iteration() / model.num_trees()
    for line in head:
        if line.startswith("objective=binary "):
            words = dict(w.partition(":")[::2] for w in line.split()[1:])
            factor *= float(words.get("sigmoid", 1.0))
    return factor


def _scale(made: Any, factor: float) -> None:
    """Multiply what the leaves of all trees say, in place."""
    for node in made.graph.node if factor != 1.0 else ():
        for attribute in node.attribute:
            if attribute.name in ("class_weights", "target_weights"):
                attribute.floats[:] = [w * factor for w in attribute.floats]
