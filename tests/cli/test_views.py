import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.cli.common import told_apart
from graphopt.formats import save
from graphopt.reporting import text
from graphopt.testing import parse_model


def test_inspect_counts_what_is_there(folder, graphopt):
    code, out, _ = graphopt("inspect", "model.onnx", "--json", "--shape", "x=8x16", "--profile")
    data = json.loads(out)
    assert code == 0
    assert data["bytes"] == Path("model.onnx").stat().st_size
    assert data["params"] == 16 * 32 + 32 + 32 * 4
    assert data["macs"] == 8 * (16 * 32 + 32 * 4)
    assert data["peak_activation_bytes"] == 4 * 8 * (32 + 32)
    assert {o["operator"]: o["count"] for o in data["operators"]} == {
        "MatMul": 2,
        "Add": 1,
        "Relu": 1,
    }
    assert data["measured_at"] == {"x": [8, 16]}
    assert sum(p["share"] for p in data["profile"]) > 0.99


def test_inspect_counts_nodes_without_a_name(folder, graphopt):
    assert not any(n.name for n in onnx.load("model.onnx").graph.node)
    code, out, _ = graphopt("inspect", "model.onnx", "--json", "--shape", "x=8x16")
    assert code == 0
    data = json.loads(out)
    counted = {o["operator"]: (o["macs"], o["params"]) for o in data["operators"]}
    assert counted["MatMul"] == (8 * (16 * 32 + 32 * 4), 16 * 32 + 32 * 4)
    assert counted["Add"][1] == 32
    assert sum(o["macs"] for o in data["operators"]) == data["macs"]


def test_the_bare_command_shows_the_help(graphopt):
    code, out, err = graphopt()
    assert (code, err) == (0, "")
    assert "graphopt optimize model.onnx -p prune,fuse,int8" in out
    assert graphopt("--help")[1] == out


def test_inspect_prints_tables(folder, graphopt):
    code, out, _ = graphopt("inspect", "model.onnx")
    assert code == 0
    assert "MatMul" in out
    assert "batch" in out


def test_files_of_one_name_are_told_apart():
    paths = ["a/model.onnx", "b/model.onnx", "b/other.onnx", "/x/b/deep.onnx", "/y/b/deep.onnx"]
    assert told_apart(paths) == {
        "a/model.onnx": "a/model.onnx",
        "b/model.onnx": "b/model.onnx",
        "b/other.onnx": "other.onnx",
        "/x/b/deep.onnx": "x/b/deep.onnx",
        "/y/b/deep.onnx": "y/b/deep.onnx",
    }
    assert told_apart(["m.onnx", "a/m.onnx"]) == {"m.onnx": "m.onnx", "a/m.onnx": "a/m.onnx"}
    assert told_apart(["a/m.onnx", "a/m.onnx"]) == {"a/m.onnx": "m.onnx"}


def test_optimize_tells_which_operators_changed(folder, graphopt):
    args = ("model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx", "--report", "r.json")
    code, out, _ = graphopt("optimize", *args)
    assert code == 0
    counted = Counter(
        f"{n.domain}:{n.op_type}" if n.domain else n.op_type for n in onnx.load("o.onnx").graph.node
    )
    report = json.loads(Path("r.json").read_text())
    assert report["before"]["operators"] == {"MatMul": 2, "Add": 1, "Relu": 1}
    assert report["after"]["operators"] == counted
    (line,) = [text for text in out.splitlines() if text.startswith("operators: ")]
    assert "Add 1 -> 0" in line
    assert "Relu 1 -> 0" in line


def test_show_tells_how_a_model_was_made(folder, graphopt):
    args = ("--samples", "calib.npz", "--no-measure", "-o", "o.onnx", "--seed", "5")
    assert graphopt("optimize", "model.onnx", "-p", "fuse", *args)[0] == 0
    code, out, _ = graphopt("show", "o.onnx", "--json")
    recipe = json.loads(out)["recipe"]
    assert code == 0
    assert recipe["seed"] == 5
    assert recipe["steps"] == [{"spec": "fuse"}]
    assert len(recipe["source"]) == 64
    code, out, _ = graphopt("show", "o.onnx", "--nodes")
    assert code == 0
    assert "fuse" in out


def test_compare_puts_two_models_side_by_side(folder, graphopt):
    args = ("--samples", "calib.npz", "--no-measure", "-o", "o.onnx")
    assert graphopt("optimize", "model.onnx", "-p", "fuse", *args)[0] == 0
    code, out, _ = graphopt("compare", "model.onnx", "o.onnx", "--json", "--no-measure")
    data = json.loads(out)
    assert code == 0
    assert data["equal"] is True
    assert data["outputs"]["y"]["rel_l2"] < 1e-6
    assert data["a"]["bytes"] == Path("model.onnx").stat().st_size
    code, out, _ = graphopt("compare", "model.onnx", "o.onnx", "--measure-seconds", "0.1")
    assert code == 0
    assert "latency ratio" in out or "no verdict on speed" in out


def test_compare_layers_names_where_two_models_part(folder, graphopt):
    proto = onnx.load("model.onnx")
    bias = onnx.numpy_helper.to_array(proto.graph.initializer[1]) + 1
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(bias, "b1"))
    onnx.save(proto, "other.onnx")
    args = ("compare", "model.onnx", "other.onnx", "--no-measure", "--layers")
    code, out, _ = graphopt(*args, "--samples", "calib.npz", "--json")
    layers = {e["output"]: e for e in json.loads(out)["layers"]}
    assert code == 0
    assert layers["h"]["rel_l2"] == 0
    assert layers["a"]["added"] == max(e["added"] for e in layers.values()) > 0


def test_passes_lists_every_pass_with_its_options(graphopt):
    code, out, _ = graphopt("passes", "--json")
    listed = {p["name"]: p for p in json.loads(out)}
    assert code == 0
    assert {"fuse", "int8"} <= listed.keys()
    assert listed["int8"]["lossy"] is True
    assert all(p["summary"] for p in listed.values())
    layers = listed["prune"]["options"]["layers"]
    assert layers["explanation"].startswith("(pattern, share) pairs: a dimension whose name, or")
    assert layers["type"] == "tuple of (text, number)"
    assert layers["default"] == []
    code, out, _ = graphopt("passes")
    assert code == 0
    shown = " ".join(out.split())
    assert "ratio 0.3 share of the MACs to remove, in [0, 1)." in shown
    assert (
        "Remove the units that matter least from every tensor that carries them. Outputs" in shown
    )


def test_the_demo_ends_with_every_figure(graphopt, monkeypatch):
    monkeypatch.setattr("graphopt.cli.demo.SECONDS", 0.1)
    code, out, _ = graphopt("demo", "--json", "-p", "fuse,int8")
    report = json.loads(out)
    assert code == 0
    # timing decides by how much it shrinks; recipe and certificate stay where it does not at all
    assert report["after"]["bytes"] < report["before"]["bytes"] + 2000
    assert report["after"]["metric"] >= report["before"]["metric"] - 0.01
    assert report["before"]["latency_ms"] > 0
    assert report["after"]["latency_ms"] > 0


def test_compare_layer_by_layer(folder, graphopt):
    graphopt("optimize", "model.onnx", "-p", "fuse", "-o", "o.onnx", "--no-measure")
    code, out, _ = graphopt("compare", "model.onnx", "o.onnx", "--layers", "--json", "--no-measure")
    found = json.loads(out)["layers"]
    assert code == 0
    assert found
    assert {"node", "op_type", "output", "rel_l2", "added", "max_abs", "other"} == set(found[0])
    assert [e["rel_l2"] for e in found] == sorted((e["rel_l2"] for e in found), reverse=True)


def test_brackets_are_printed_as_they_are(capsys):
    made = text.table("install")
    made.add_row("pip install 'graphopt[torch]'")
    text.out().print(made)
    text.out().print("float [k, n], names[bold]")
    out = capsys.readouterr().out
    assert "pip install 'graphopt[torch]'" in out
    assert "float [k, n], names[bold]" in out


def test_compare_tells_what_leaves_its_calibrated_range(folder, graphopt):
    body = "h = Relu(x)  q = QuantizeLinear(h, s, z)  y = DequantizeLinear(q, s, z)"
    held = {"s": np.float32(0.5), "z": np.int8(-128)}  # from 0 to 127.5
    save(parse_model(body, inputs={"x": ("N", 4)}, constants=held), "q.onnx")
    save(parse_model("y = Relu(x)", inputs={"x": ("N", 4)}), "f.onnx")
    np.savez("far.npz", x=np.float32([[1, 2, 3, 400], [-1, 127, 129, 5]]))
    args = ("compare", "f.onnx", "q.onnx", "--samples", "far.npz", "--no-measure")
    _, out, _ = graphopt(*args)
    assert "b: 2 of 8 values that are quantized lie outside of their ranges, in 1 of 1" in out
    _, out, _ = graphopt(*args, "--json")
    told = json.loads(out)["drift"]
    assert told["a"] == []
    assert [(o["name"], o["low"], o["high"], o["share"]) for o in told["b"]] == [
        ("h", 0, 127.5, 0.25)
    ]


def test_compare_is_a_gate(folder, graphopt):
    graphopt("optimize", "model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx")
    same = ("compare", "model.onnx", "o.onnx", "--no-measure")
    assert graphopt(*same, "--max-size", "1MB", "--max-error", "1e-4")[0] == 0
    code, out, _ = graphopt(*same, "--max-size", "0.5x")
    assert code == 4
    assert "is over --max-size" in out
    code, out, _ = graphopt(*same, "--max-latency", "1.1x", "--json")
    assert code == 4
    assert json.loads(out)["missed"] == ["--max-latency cannot be judged: nothing was measured"]


def test_compare_writes_a_page_or_json(folder, graphopt):
    graphopt("optimize", "model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx")
    same = ("compare", "model.onnx", "o.onnx", "--no-measure", "--report")
    for _ in range(2):  # the second over the first
        code, out, _ = graphopt(*same, "c.html")
        assert code == 0
        assert "relative L2" in out
        assert "added" not in out
        assert graphopt(*same, "c.json")[0] == 0
    assert Path("c.html").read_bytes().startswith(b"<!-- graphopt page -->")
    assert json.loads(Path("c.json").read_text())["equal"] is True
    Path("c.html").write_text("mine")
    code, _, err = graphopt(*same, "c.html")
    assert (code, "is not graphopt's" in err) == (2, True)


def test_view_shows_a_model_in_netron_until_ctrl_c(folder, graphopt):
    pytest.importorskip("netron", reason="the extra netron is not installed")
    command = [sys.executable, "-P", "-m", "graphopt", "view", "model.onnx", "--netron"]
    quiet = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}

    def heard():  # what a script starts in its background has Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=quiet, preexec_fn=heard
    ) as shown:
        line = shown.stdout.readline()
        address = re.fullmatch(r"Netron shows model.onnx at (http://.*) until Ctrl-C\n", line)[1]
        with urllib.request.urlopen(address) as page:
            assert b"Netron" in page.read()
        shown.send_signal(signal.SIGINT)
        assert shown.wait(timeout=600) in (0, 130)
    code, _, err = graphopt("view", "model.onnx", "--netron", "-o", "x.html")
    assert (code, "give it alone" in err) == (2, True)
    code, _, err = graphopt("view", "none.onnx", "--netron")
    assert code == 3


def test_optimize_and_view_write_pages(folder, graphopt):
    args = ("model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx", "--report", "r.html")
    assert graphopt("optimize", *args)[0] == 0
    assert b"graphopt optimize model.onnx" in Path("r.html").read_bytes()
    code, out, _ = graphopt("view", "o.onnx", "-o", "v.html", "--profile")
    assert (code, out) == (0, "wrote v.html\n")
    code, out, _ = graphopt("view", "o.onnx", "-o", "v.html", "--json")
    assert json.loads(out)["bytes"] == Path("v.html").stat().st_size
    code, _, _ = graphopt("diff", "model.onnx", "o.onnx", "--html", "d.html")
    assert code == 1
    assert Path("d.html").read_bytes().startswith(b"<!-- graphopt page -->")
