"""LightGBM: boosters in .txt files, through onnxmltools.

Objectives that onnxmltools 1.16 does not know are told to it as a regression, whose sums are then
finished here.
"""

from itertools import takewhile
from typing import Any

#: What becomes of the sums of leaves, step by step, by objectives that are told as a regression;
#: "" is one of the user's own, whose result LightGBM leaves as it is.
RESULTS: dict[str, tuple[str, ...]] = {
    "": (),
    "cross_entropy": ("Sigmoid",),
    "cross_entropy_lambda": ("Softplus",),
    "fair": (),
    "mape": (),
    "regression sqrt": ("Abs", "Mul"),
}


def convert(path: str, onnx_path: str) -> Any:
    """Convert; a classifier gives a label and probabilities as one tensor."""
    import lightgbm
    from finishing import then
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = lightgbm.Booster(model_file=path)
    with open(path) as text:
        if any(line.strip() == "is_linear=1" for line in text):
            raise ValueError("its leaves hold linear models (linear_tree), which ONNX has not")
    columns = [("x", FloatTensorType([None, model.num_feature()]))]
    head = _head(path)
    objective = head.get("objective", "")
    result = RESULTS.get(objective)
    alike = model
    if result is not None:
        alike = lightgbm.Booster(model_str=_told(path, objective))
        alike.params["objective"] = "regression"
    made = convert_lightgbm(alike, initial_types=columns, zipmap=False)
    _scale(made, _factor(head, model))
    if objective.startswith("multiclassova"):
        _each_for_itself(made)
    for op in result or ():
        then(made, op)
    _zeros_are_missing(made, _columns_without_zeros(path))
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


def _head(path: str) -> dict[str, str]:
    """What a model's file says of it before its trees, by key."""
    with open(path) as file:
        lines = takewhile(lambda line: line[:5] != "Tree=", file)
        return dict(line.strip().partition("=")[::2] for line in lines)


def _told(path: str, objective: str) -> str:
    """The model's file as the converter is given it."""
    with open(path) as file:
        text = file.read()
    if objective:
        return text.replace(f"\nobjective={objective}\n", "\nobjective=regression\n", 1)
    return text.replace("\nnum_class=", "\nobjective=regression\nnum_class=", 1)


def _factor(head: dict[str, str], model: Any) -> float:
    """What scores are multiplied by, which onnxmltools 1.16 leaves out.

    A random forest (`boosting=rf`) averages its trees, and `sigmoid` is the slope of a classifier
    of two classes, or of one class against all others.
    """
    factor = 1.0
    if "average_output" in head:
        factor = model.num_model_per_iteration() / model.num_trees()
    words = dict(w.partition(":")[::2] for w in head.get("objective", "").split())
    return factor * float(words.get("sigmoid", 1.0))


def _scale(made: Any, factor: float) -> None:
    """Multiply what the leaves of all trees say, in place."""
    for node in made.graph.node if factor != 1.0 else ():
        for attribute in node.attribute:
            if attribute.name in ("class_weights", "target_weights"):
                attribute.floats[:] = [w * factor for w in attribute.floats]


def _each_for_itself(made: Any) -> None:
    """Let a classifier of one class against all others give each the sigmoid of its own score."""
    for node in made.graph.node:
        for attribute in node.attribute:
            if attribute.name == "post_transform":
                attribute.s = b"LOGISTIC"


def _columns_without_zeros(path: str) -> set[int]:
    """Columns in which zeros are missing values (zero_as_missing), by what splits say of them."""
    found: set[int] = set()
    features: list[int] = []
    with open(path) as file:
        for line in file:
            key, _, values = line.partition("=")
            if key == "split_feature":
                features = [int(v) for v in values.split()]
            elif key == "decision_type":  # bits: categories, default left, two of what is missing
                types = [int(v) for v in values.split()]
                found |= {f for f, t in zip(features, types, strict=True) if t & 0b1101 == 0b0100}
    return found


def _zeros_are_missing(made: Any, columns: set[int]) -> None:
    """Let trees read NaN for zeros in these columns."""
    import numpy as np
    import onnx
    from finishing import with_opset

    if not columns:
        return
    reads = made.graph.input[0].name
    for node in made.graph.node:
        node.input[:] = ["zeros_gone" if n == reads else n for n in node.input]
    width = made.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    most = np.full(width, -1, np.float32)
    most[list(columns)] = 1e-35  # what LightGBM takes for zero
    for name, array in (("largest_zero", most), ("missing", np.array(np.nan, np.float32))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    steps = (
        ("Abs", [reads], "sizes"),
        ("LessOrEqual", ["sizes", "largest_zero"], "zeros"),
        ("Where", ["zeros", "missing", reads], "zeros_gone"),
    )
    for k, (op, inputs, output) in enumerate(steps):
        made.graph.node.insert(k, onnx.helper.make_node(op, inputs, [output]))
    with_opset(made)
