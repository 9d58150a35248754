"""Folders of onnxruntime-genai: read as their decoder, written with all that lies beside it."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import graphopt
from graphopt.cli import cli
from graphopt.errors import ModelError, UsageError
from graphopt.io.genai import decoder_of

HEADER = '<ir_version: 9, opset_import: ["": 18]> g '
TEXT = HEADER + "(float[2] x) => (float[2] z) {y = Identity(x) z = Relu(y)}"
CONFIG = {"model": {"type": "llama", "decoder": {"filename": "text.onnx"}}, "search": {}}


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "source"
    (source / "adapters").mkdir(parents=True)
    graphopt.save(ir.from_onnx_text(TEXT), source / "text.onnx")
    graphopt.save(ir.from_onnx_text(TEXT.replace("Relu", "Neg")), source / "embedding.onnx")
    (source / "tokenizer.json").write_text('{"a": 1}')
    (source / "adapters" / "one.bin").write_bytes(b"123")
    (source / "genai_config.json").write_text(json.dumps(CONFIG))
    return source


def invoke(*argv):
    return CliRunner().invoke(cli, [str(a) for a in argv], obj=[])


def test_a_folder_comes_out_with_its_decoder_optimized_and_all_else_as_it_was(folder, tmp_path):
    out = tmp_path / "out"
    argv = ["optimize", folder, "-p", "clean", "--no-measure", "--json", "-o", out]
    said = json.loads(invoke(*argv).stdout)
    assert said["output"] == str(out / "text.onnx")
    assert [n.op_type for n in graphopt.load(out).graph] == ["Relu"]
    for name in ("tokenizer.json", "genai_config.json", "embedding.onnx", "adapters/one.bin"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    first = (out / "text.onnx").read_bytes()
    assert invoke(*argv).exception is None  # graphopt's own may be written again
    assert (out / "text.onnx").read_bytes() == first


def test_other_commands_read_the_decoder(folder, tmp_path):
    invoke("optimize", folder, "-p", "clean", "--no-measure", "-o", tmp_path / "out")
    recipe = json.loads(invoke("show", tmp_path / "out", "--json").stdout)["recipe"]
    assert recipe["steps"][0]["spec"] == "clean"
    argv = ["compare", folder, tmp_path / "out", "--no-measure", "--json"]
    said = json.loads(invoke(*argv).stdout)
    assert (said["a"]["nodes"], said["b"]["nodes"], said["equal"]) == (2, 1, True)
    assert invoke("pack", folder, "-o", tmp_path / "m.gopt", "--lossless").exception is None
    assert len(graphopt.load(tmp_path / "m.gopt").graph) == 2


def test_from_python(folder, tmp_path):
    model = graphopt.load(folder)
    graphopt.save(model, f"{tmp_path / 'new'}/")
    assert (tmp_path / "new" / "adapters" / "one.bin").read_bytes() == b"123"
    assert len(graphopt.load(tmp_path / "new").graph) == 2
    with pytest.raises(UsageError, match="not read from one"):
        graphopt.save(ir.from_onnx_text(TEXT), f"{tmp_path / 'other'}/")


def test_data_that_the_decoder_alone_has_stays_behind(folder, tmp_path):
    w = ir.tensor(np.arange(4000, dtype=np.float32), name="w")
    text = HEADER + "(float[4000] x) => (float[4000] y) {y = Add(x, w)}"
    for name in ("text.onnx", "embedding.onnx"):
        model = ir.from_onnx_text(text)
        model.graph[0].inputs[1].const_value = w
        model.graph.register_initializer(model.graph[0].inputs[1])
        (folder / name).unlink()
        graphopt.save(model, folder / name, external=True)
    out = tmp_path / "out"
    argv = ("-p", "clean", "--no-measure", "--no-external-data", "-o", out)
    assert invoke("optimize", folder, *argv).exception is None
    assert not (out / "text.onnx.data").exists()
    assert (out / "embedding.onnx.data").stat().st_size == 16000


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "names no file at model.decoder.filename"),
        ('{"model": []}', "names no file at model.decoder.filename"),
        ('{"model": {"decoder": {"filename": "../x.onnx"}}}', "outside of its folder"),
        (None, "a folder without a genai_config.json"),
    ],
)
def test_a_folder_that_names_no_decoder_is_refused(folder, config, said):
    (folder / "genai_config.json").unlink()
    if config is not None:
        (folder / "genai_config.json").write_text(config)
    with pytest.raises(ModelError, match=said):
        graphopt.load(f"{folder}/")
    assert said in str(invoke("inspect", folder).exception)


def test_nothing_of_others_is_overwritten(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("mine")
    done = invoke("optimize", folder, "-p", "clean", "--no-measure", "-o", out)
    assert "another file" in str(done.exception)
    assert [p.name for p in out.iterdir()] == ["tokenizer.json"]
    done = invoke("optimize", folder, "-p", "clean", "--no-measure", "-o", folder)
    assert "is the input" in str(done.exception)
    invoke("optimize", folder, "-p", "clean", "--no-measure", "--dry-run", "-o", tmp_path / "dry")
    assert not (tmp_path / "dry").exists()
    assert decoder_of(folder).name == "text.onnx"
