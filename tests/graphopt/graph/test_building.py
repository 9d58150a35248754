"""Building: a new value stands where an old one stood, with what is declared of it."""

import onnx_ir as ir

from graphopt import optimize
from graphopt.testing import parse_model


def test_what_is_declared_of_an_output_stays_though_more_is_known():
    model = parse_model("a = Relu(x)  y = Concat<axis=0>(a)", inputs={"x": ("N", 3)})
    model.graph.outputs[0].shape = ir.Shape(["exported_0", "exported_1"])
    result = optimize(model, "clean", measure=False)
    (step,) = result.report.steps
    assert (step.status, step.undone) == ("kept", ())
    assert [n.op_type for n in result.model.graph] == ["Relu"]
    assert [str(d) for d in result.model.graph.outputs[0].shape] == ["exported_0", "exported_1"]
