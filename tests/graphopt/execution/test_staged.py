import numpy as np
import onnx_ir as ir

from graphopt.execution.runtime import run
from graphopt.execution.staged import Staged
from graphopt.testing import parse_model

TEXT = "a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, v)  d = Add (c, x)  y = Relu (d)"


def build():
    rng = np.random.default_rng(0)
    constants = {k: rng.standard_normal((4, 4)).astype(np.float32) for k in "wv"}
    model = parse_model(TEXT, inputs={"x": (2, 4)}, constants=constants)
    samples = [{"x": rng.standard_normal((2, 4)).astype(np.float32)} for _ in range(3)]
    return model, {o.name: o for n in model.graph for o in n.outputs}, samples


def test_stages_agree_with_a_run():
    model, values, samples = build()
    with Staged(model, samples) as staged:
        for name in ("b", "c", "y"):
            got = [array for (array,) in staged.values([values[name]])]
            probe = model.clone()
            probe.graph.outputs[:] = [o for n in probe.graph for o in n.outputs if o.name == name]
            for sample, array in zip(samples, got, strict=True):
                np.testing.assert_allclose(array, run(probe, sample)[name], atol=1e-6)


def test_inputs_and_constants_can_be_asked_for():
    model, values, samples = build()
    x, w = model.graph.inputs[0], model.graph.initializers["w"]
    with Staged(model, samples) as staged:
        for sample, (a, b, _) in zip(samples, staged.values([x, w, values["a"]]), strict=True):
            np.testing.assert_array_equal(a, sample["x"])
            np.testing.assert_array_equal(b, w.const_value.numpy())


def test_edits_downstream_are_seen():
    model, values, samples = build()
    with Staged(model, samples) as staged:
        before = [array for (array,) in staged.values([values["b"]])]
        model.graph.initializers["v"].const_value = ir.tensor(np.eye(4, dtype=np.float32))
        after = [array for (array,) in staged.values([values["c"]])]
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_what_is_forgotten_leaves_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, values, samples = build()
    with Staged(model, samples) as staged:
        list(staged.values([values["b"]]))
        list(staged.values([values["c"]]))
        assert len(list(tmp_path.rglob("*.npy"))) == 9
        staged.forget([values["y"]])  # needs c and x
        assert len(list(tmp_path.rglob("*.npy"))) == 6
        (again, *_) = [array for (array,) in staged.values([values["y"]])]
        np.testing.assert_allclose(again, run(model, samples[0])["y"], atol=1e-6)
    assert not list(tmp_path.iterdir())


def test_outputs_of_one_node_can_be_asked_for_one_by_one():
    text = "a, b = Split <axis=1, num_outputs=2> (x)  c = Relu (a)  d = Add (b, c)  y = Neg (d)"
    model = parse_model(text, inputs={"x": (2, 4)})
    values = {o.name: o for n in model.graph for o in n.outputs}
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4) - 4}
    with Staged(model, [feeds]) as staged:
        list(staged.values([values["a"]]))
        list(staged.values([values["c"], values["b"]]))
        ((y,),) = staged.values([values["y"]])
    np.testing.assert_array_equal(y, run(model, feeds)["y"])
