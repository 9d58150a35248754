import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import ModelError
from graphopt.execution import staged as staged_values
from graphopt.execution.observe import observe
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


@pytest.mark.parametrize("carried", [True, None], ids=["asked for", "too large"])
def test_carried_residuals_let_every_node_run_once(carried, monkeypatch):
    """Without the sum kept, each stage of a deep model would start from its first again."""
    monkeypatch.setattr(staged_values, "IN_PARTS", 100)
    rng = np.random.default_rng(0)
    depth = 5
    text = "  ".join(
        f"a{k} = MatMul (h{k}, w{k})  r{k} = Relu (a{k})  h{k + 1} = Add (h{k}, r{k})"
        for k in range(depth)
    ).replace("h0", "x")
    constants = {f"w{k}": rng.standard_normal((4, 4)).astype(np.float32) for k in range(depth)}
    model = parse_model(f"{text}  y = Neg (h{depth})", inputs={"x": (2, 4)}, constants=constants)
    values = {o.name: o for n in model.graph for o in n.outputs}
    wanted = [values[f"r{k}"] for k in range(depth)]
    ran = []
    extract = ir.convenience.extract
    monkeypatch.setattr(
        ir.convenience, "extract", lambda *args: ran.append(extract(*args)) or ran[-1]
    )
    samples = [{"x": rng.standard_normal((2, 4)).astype(np.float32)} for _ in range(2)]
    with Staged(model, samples, carried=carried) as staged:
        for k, value in enumerate(wanted):
            got = [array for (array,) in staged.values([value])]
            staged.forget(wanted[k + 1 :])
    assert [n.op_type for graph in ran for n in graph].count("MatMul") == depth
    last = f"r{depth - 1}"
    for sample, array in zip(samples, got, strict=True):
        (expected,) = observe(model, [last], [sample])
        np.testing.assert_allclose(array, expected[last], rtol=1e-6)


def test_values_in_a_lasting_folder_are_known_to_the_next_run(tmp_path, monkeypatch):
    model, values, samples = build()
    with Staged(model, samples, carried=True, folder=tmp_path / "kept") as staged:
        list(staged.values([values["b"]]))
    ran = []
    extract = ir.convenience.extract
    monkeypatch.setattr(
        ir.convenience, "extract", lambda *args: ran.append(extract(*args)) or ran[-1]
    )
    with Staged(model, samples, carried=True, folder=tmp_path / "kept") as again:
        assert not again.leads_to(values["a"], [values["c"]])
        assert not again.leads_to(values["b"], [values["c"]])
        assert again.leads_to(values["c"], [values["y"]])
        got = [array for (array,) in again.values([values["c"]])]
    assert [n.op_type for graph in ran for n in graph] == ["MatMul"]
    for sample, array in zip(samples, got, strict=True):
        (expected,) = observe(model, ["c"], [sample])
        np.testing.assert_allclose(array, expected["c"], rtol=1e-6)


@pytest.mark.parametrize("folder", [None, "kept"])
def test_a_full_disk_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, _, samples = build()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(ModelError, match=r"cannot be kept in .*: No space left on device"):
        Staged(model, samples, folder=tmp_path / folder if folder else None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
