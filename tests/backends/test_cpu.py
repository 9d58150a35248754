import dataclasses
import json

import numpy as np
import pytest
from graphopt.backends.cpu import BACKEND, TARGETS, nearest_target

from graphopt import plugins
from graphopt.backend import Backend, backend_of, find_target
from graphopt.deploy.manifest import Manifest, manifest_path, read_manifest, write_manifest
from graphopt.deploy.processors import processors
from graphopt.deploy.sessions import session
from graphopt.errors import InputError, ModelError, UsageError
from graphopt.testing import parse_model

COUNT = processors() + 1
FEEDS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def lowered(tmp_path):
    """A lowered small model, on a number of threads that is not the machine's own."""
    model = parse_model("a = MatMul(x, w)  y = Relu(a)", constants={"w": np.eye(3, dtype="f4")})
    target = dataclasses.replace(BACKEND.target("cpu"), threads=COUNT)
    return BACKEND.lower(model, target, tmp_path / "model.onnx"), target


def test_every_backend_is_found_and_keeps_the_protocol():
    found = plugins.find(plugins.BACKENDS)
    assert "cpu" in found
    for name, entry in found.items():
        backend = entry.load()
        assert isinstance(backend, Backend)
        assert backend.name == name


def test_cpu_is_this_machine_and_measured():
    target = find_target("cpu")
    assert backend_of(target) is BACKEND
    assert target.measured
    assert target.threads >= 1
    assert target.opset >= 18


@pytest.mark.parametrize("name", list(TARGETS))
def test_other_machines_are_data_and_not_measured(name):
    target = find_target(name)
    assert target.name == name
    assert not target.measured
    assert target.int8 is not None


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(UsageError, match="cpu-avx2"):
        find_target("cpu-avx3")


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        (("avx2",), "cpu-avx2"),
        (("avx2", "avx512"), "cpu-avx2"),
        (("avx2", "avx512", "avx512-vnni", "avx512-bf16"), "cpu-avx512-vnni"),
        (("avx2", "avx512", "avx512-vnni", "avx512-bf16", "amx-int8", "amx-bf16"), "cpu-amx"),
        (("neon", "dotprod", "i8mm"), "cpu-arm"),
        (("neon",), "cpu-arm"),
        ((), "cpu-avx2"),
    ],
)
def test_a_machine_gets_the_strongest_target_it_covers(isa, expected):
    assert nearest_target(isa) == expected


def test_lowered_models_run_and_measure(lowered):
    path, target = lowered
    outputs = BACKEND.session(path, target)(FEEDS)
    np.testing.assert_array_equal(outputs["y"], FEEDS["x"])
    timing = BACKEND.measure(path, path, FEEDS, target, seconds=0.05)
    assert timing.pairs >= 5
    assert timing.ci[0] <= timing.ratio <= timing.ci[1]


def test_profile_names_the_nodes_and_leaves_no_file(lowered, tmp_path, monkeypatch):
    path, target = lowered
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    times = BACKEND.profile(path, FEEDS, target)
    assert times
    assert all(t >= 0 for t in times.values())
    assert any("MatMul" in name for name in times)
    assert sorted(tmp_path.iterdir()) == before


def test_the_manifest_opens_the_model_as_lowered(lowered):
    path, _ = lowered
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.threads == COUNT
    opened = session(path)
    assert opened.raw.get_session_options().intra_op_num_threads == COUNT
    assert opened.raw.get_providers() == ["CPUExecutionProvider"]
    np.testing.assert_array_equal(opened(FEEDS)["y"], FEEDS["x"])
    assert session(path, threads=1).raw.get_session_options().intra_op_num_threads == 1


def test_a_model_without_a_manifest_opens_too(lowered):
    path, _ = lowered
    manifest_path(path).unlink()
    assert read_manifest(path) is None
    np.testing.assert_array_equal(session(path)(FEEDS)["y"], FEEDS["x"])


def test_manifests_round_trip(tmp_path):
    manifest = Manifest(
        "t", provider="P", provider_options={"a": "1"}, threads=3, free_dimensions={"batch": 4}
    )
    file = write_manifest(tmp_path / "m.opt.onnx", manifest)
    assert file.name == "m.opt.session.json"
    assert read_manifest(tmp_path / "m.opt.onnx") == manifest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "colour": 2}', '{"schema": 99}'])
def test_a_broken_manifest_is_one_clear_line(lowered, text):
    path, _ = lowered
    manifest_path(path).write_text(text)
    with pytest.raises(InputError, match=r"session\.json"):
        session(path)


def test_free_dimensions_are_fixed(tmp_path):
    model = parse_model("y = Relu(x)", inputs={"x": (2, 3)})
    model.graph.inputs[0].shape = type(model.graph.inputs[0].shape)(["batch", 3])
    target = BACKEND.target("cpu")
    path = BACKEND.lower(model, target, tmp_path / "m.onnx")
    write_manifest(path, Manifest("cpu", free_dimensions={"batch": 2}))
    assert session(path).raw.get_inputs()[0].shape == [2, 3]


def test_missing_models_and_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="no model"):
        session(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        session(tmp_path / "text.onnx")


def test_manifests_hold_only_what_says_something(lowered):
    path, _ = lowered
    data = json.loads(manifest_path(path).read_text())
    assert data == {
        "schema": 1,
        "target": "cpu",
        "provider": "CPUExecutionProvider",
        "threads": COUNT,
    }


def test_threads_nobody_chose_are_not_written(tmp_path):
    """The model may run on another machine, with more processors than this one."""
    model = parse_model("y = Relu(x)")
    path = BACKEND.lower(model, BACKEND.target("cpu"), tmp_path / "m.onnx")
    assert read_manifest(path).threads == 0
