"""TensorFlow: SavedModel folders and .tflite files, through tf2onnx."""

import os
from typing import Any


def convert(path: str, onnx_path: str) -> Any:
    """Convert the serving signature of a SavedModel, or the graph of a .tflite file."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import tensorflow as tf
    import tf2onnx

    if path.endswith(".tflite"):
        tf2onnx.convert.from_tflite(path, opset=17, output_path=onnx_path)
        return _interpreted(path, tf)
    model = tf.saved_model.load(path)
    serve = model.signatures["serving_default"]
    specs = list(serve.structured_input_signature[1].values())
    names = [s.name for s in specs]

    def flat(*tensors: Any) -> Any:
        return serve(**dict(zip(names, tensors, strict=True)))

    traced = tf.function(flat, input_signature=specs)
    made, _ = tf2onnx.convert.from_function(traced, input_signature=specs, opset=17)
    _with_constants(made, traced.get_concrete_function().graph.captures)
    with open(onnx_path, "wb") as file:
        file.write(made.SerializeToString())
    outputs = [o.name for o in made.graph.output]

    def predict(feeds: Any) -> list[Any]:
        given = {n: tf.constant(x) for n, x in zip(names, feeds.values(), strict=True)}
        made = serve(**given)
        return [made.get(o, None) if len(made) > 1 else next(iter(made.values())) for o in outputs]

    return predict


def _with_constants(made: Any, captures: Any) -> None:
    """Store the tensors that a function holds: tf2onnx 1.17 makes them inputs if no variable is."""
    from onnx import numpy_helper

    held = {placeholder.name: tensor for tensor, placeholder in captures}
    for value in [v for v in made.graph.input if v.name in held]:
        made.graph.input.remove(value)
        array = held[value.name].numpy()
        made.graph.initializer.append(numpy_helper.from_array(array, value.name))


def _interpreted(path: str, tf: Any) -> Any:
    def predict(feeds: Any) -> list[Any]:
        runner = tf.lite.Interpreter(model_path=path)
        inputs = runner.get_input_details()
        for one, x in zip(inputs, feeds.values(), strict=True):
            runner.resize_tensor_input(one["index"], x.shape)
        runner.allocate_tensors()
        for one, x in zip(inputs, feeds.values(), strict=True):
            runner.set_tensor(one["index"], x)
        runner.invoke()
        return [runner.get_tensor(one["index"]) for one in runner.get_output_details()]

    return predict
