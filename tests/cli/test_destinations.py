"""What is written: never an input, a file of the user's, anything but plain files, or one twice."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.deploy.manifest import Manifest, manifest_path, read_manifest, write_manifest
from graphopt.errors import ModelError
from graphopt.replacing import replace_files

RUN = ("optimize", "model.onnx", "-p", "clean", "--no-measure", "--samples", "calib.npz")
EVAL = "def score(predict):\n    return 1.0\n"


@pytest.fixture
def inputs(folder):
    """Every kind of file that a run reads, by the options that name it."""
    Path("score.py").write_text(EVAL)
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nfrom graphopt import Pass\n\n"
        "@dataclass(frozen=True)\nclass P(Pass):\n"
        "    def run(self, model, ctx):\n        return 0\n"
    )
    Path("named.toml").write_text("seed = 0\n")
    Path("graphopt.toml").write_text("seed = 0\n")
    proto = onnx.load("model.onnx")
    onnx.save(proto, "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder


def contents():
    return {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()}


INPUTS = ["model.onnx", "w.bin", "calib.npz", "score.py", "mine.py", "named.toml"]


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_an_input_is_never_overwritten_under_any_name(inputs, graphopt, option):
    more = ("-p", "clean, mine.py:P", "--eval", "score.py:score", "--config", "named.toml")
    names = list(INPUTS)
    for name in INPUTS:
        os.link(name, f"hard-{name}")
        os.symlink(name, f"soft-{name}")
        names += [f"hard-{name}", f"soft-{name}", f"./x/../{name}"]
    Path("x").mkdir()
    before = contents()
    for name in names:
        output = () if option == "-o" else ("-o", "o.onnx")
        code, _, err = graphopt(*RUN, *more, option, name, *output)
        assert (code, err.count("\n")) == (2, 1), (name, err)
        assert "is the input, or belongs to it" in err, (name, err)
    assert contents() == before


def test_an_unnamed_configuration_is_an_input_too(inputs, graphopt):
    code, _, err = graphopt(*RUN, "-o", "o.onnx", "--report", "graphopt.toml")
    assert code == 2
    assert "is the input" in err


FOREIGN = {
    "-o": {"o.onnx": b"mine", "o.txt": b"mine"},
    "--report": {"r.json": b'{"mine": 1}', "r.txt": b"mine"},
}


@pytest.mark.parametrize(("option", "files"), FOREIGN.items(), ids=FOREIGN)
def test_a_file_of_the_users_is_never_overwritten(folder, graphopt, option, files):
    Path("other.onnx").write_bytes(Path("model.onnx").read_bytes())
    for name, data in files.items():
        Path(name).write_bytes(data)
    before = contents()
    output = () if option == "-o" else ("-o", "new.onnx")
    for name in (*files, "other.onnx"):
        code, _, err = graphopt(*RUN, *output, option, name)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{name} exists and is not graphopt's: name another file with {option}" in err
    assert contents() == before, "refused before the run"


def test_what_graphopt_wrote_and_what_is_empty_is_replaced(folder, graphopt):
    for name in ("o.onnx", "r.json"):
        Path(name).touch()
    for more in ((), (), ("--strip",), ("--strip",), ()):
        code, _, err = graphopt(*RUN, "-o", "o.onnx", "--report", "r.json", *more)
        assert code == 0, err
    # a stripped model is known by its manifest, and only as long as it is that model
    assert graphopt(*RUN, "-o", "o.onnx", "--strip")[0] == 0
    Path("o.onnx").write_bytes(Path("model.onnx").read_bytes())
    assert graphopt(*RUN, "-o", "o.onnx")[0] == 2


def test_what_lies_beside_the_output_is_not_overwritten_either(folder, graphopt):
    for name in ("o.session.json", "p.onnx.data"):
        Path(name).write_text('{"mine": 1}')
    proto = onnx.load("model.onnx")
    onnx.save(proto, "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    code, _, err = graphopt(*RUN, "-o", "o.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "o.session.json is no session manifest" in err
    assert not Path("o.onnx").exists()
    code, _, err = graphopt("optimize", "e.onnx", *RUN[2:], "-o", "p.onnx")
    if code:  # where weights go beside the model
        assert "p.onnx.data holds no weights of p.onnx" in err
    assert Path("p.onnx.data").read_text() == '{"mine": 1}'


def test_two_models_share_no_manifest(folder):
    names = {manifest_path(Path(n)).name for n in ("m.onnx", "m.bin", "m", "m.onnx.bin")}
    assert names == {
        "m.session.json", "m.bin.session.json", "m.onnx.bin.session.json"
    }  # fmt: skip  # only a name without an ending is that of a model with one


@pytest.mark.parametrize("option", ["-o", "--report", "--plot"])
def test_only_plain_files_are_written(folder, graphopt, option):
    os.mkfifo("pipe.svg")
    os.symlink("pipe.svg", "link.svg")
    os.symlink("/dev/null", "null.svg")
    Path("d.svg").mkdir()
    for name in ("pipe.svg", "link.svg", "null.svg", "d.svg", "nowhere/x.svg"):
        if option == "--plot":
            code, _, err = graphopt("bench", "model.onnx", "--plot", name)
        else:
            output = () if option == "-o" else ("-o", "o.onnx")
            code, _, err = graphopt(*RUN, *output, option, name)
        assert (code, err.count("\n")) == (2, 1), err
        assert name in err
    assert Path("pipe.svg").is_fifo()
    assert not Path("o.onnx").exists(), "refused before the run"
    with pytest.raises(ModelError, match="not a plain file"):
        replace_files([(Path("link.svg"), [b"x"])])


def test_two_outputs_of_one_run_do_not_share_a_path(folder, graphopt):
    os.symlink("o.onnx", "link.onnx")
    for name in ("o.onnx", "./o.onnx", "link.onnx", "o.session.json"):
        code, _, err = graphopt(*RUN, "-o", "o.onnx", "--report", name)
        assert code == 2
        assert "both name" in err
    assert not Path("o.onnx").exists()


def test_a_link_stays_and_what_it_names_is_written(folder, graphopt):
    Path("real").mkdir()
    for name in ("o.onnx", "r.json"):
        os.symlink(f"real/{name}", name)
    assert graphopt(*RUN, "-o", "o.onnx", "--report", "r.json")[0] == 0
    assert Path("o.onnx").is_symlink()
    assert Path("r.json").is_symlink()
    assert json.loads(Path("real/r.json").read_text())["output"] == "o.onnx"


def test_a_plot_and_the_demo_are_guarded_too(folder, graphopt):
    Path("p.svg").write_text("<svg/>")
    code, _, err = graphopt("bench", "model.onnx", "--plot", "p.svg")
    assert (code, "is not graphopt's" in err) == (2, True)
    code, _, err = graphopt("demo", "-o", "model.onnx")
    assert (code, "is not graphopt's" in err) == (2, True)


def test_a_report_that_cannot_be_written_hides_no_model(folder, graphopt, monkeypatch):
    from graphopt import replacing

    def full(handle, chunk):
        if bytes(chunk[:1]) == b"{" and b"steps" in bytes(chunk):
            raise OSError(28, "No space left on device")
        return os.write(handle, chunk)

    monkeypatch.setattr(replacing, "_write_out", full)
    code, out, err = graphopt(*RUN, "-o", "o.onnx", "--report", "r.json")
    assert code == 3
    assert "wrote o.onnx" in out
    assert "r.json cannot be written" in err
    assert "written until then: o.onnx" in err
    onnx.checker.check_model("o.onnx")


def test_concurrent_manifests_are_whole(tmp_path):
    failed = []

    def write(threads):
        try:
            for _ in range(60):
                write_manifest(tmp_path / "m.onnx", Manifest("cpu", threads=threads))
                assert read_manifest(tmp_path / "m.onnx").threads in range(4)
        except Exception as error:
            failed.append(error)

    workers = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []
    assert [p.name for p in tmp_path.iterdir()] == ["m.session.json"]


WRITER = """
import sys
from pathlib import Path
from graphopt.replacing import replace_files
text = sys.argv[1].encode() * 1000
for _ in range(100):
    replace_files([(Path("a"), [text]), (Path("b"), [text])])
"""


def test_files_of_one_set_stay_together_however_many_write(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(k)], cwd=tmp_path) for k in range(3)
    ]
    assert [w.wait() for w in workers] == [0, 0, 0]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_concurrent_runs_leave_a_whole_output(folder):
    command = [sys.executable, "-P", "-m", "graphopt", *RUN, "-o", "o.onnx"]
    workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [w.wait() for w in workers] == [0, 0, 0]
    onnx.checker.check_model("o.onnx")
    names = ["calib.npz", "model.onnx", "o.onnx", "o.session.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert np.load("calib.npz")["x"].shape == (64, 16)
