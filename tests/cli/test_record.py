"""`graphopt record`: what a program feeds its models becomes samples."""

import json

import numpy as np
import pytest

CLIENT = """
import sys
import numpy as np
from onnxruntime import InferenceSession

session = InferenceSession("model.onnx")
for k in range(int(sys.argv[1])):
    session.run(None, {"x": np.full((2, 16), k, np.float32)})
open("said.txt", "w").write(str(sys.argv[2:]))
"""


@pytest.fixture
def client(folder):
    (folder / "client.py").write_text(CLIENT)
    return folder


def test_each_run_is_a_sample_as_the_client_had_it(client, graphopt):
    assert graphopt("record", "client.py", "3", "-o", "samples", "--", "--deep", "-o")[0] == 0
    assert (client / "said.txt").read_text() == "['--deep', '-o']"
    files = sorted((client / "samples" / "model").iterdir())
    assert [f.name for f in files] == ["000.npz", "001.npz", "002.npz"]
    assert [np.load(f)["x"].tolist() for f in files] == [[[k] * 16] * 2 for k in range(3)]
    code, out, _ = graphopt(
        *("optimize", "model.onnx", "-p", "fuse,int8", "--samples", "samples/model"),
        *("-o", "small.onnx", "--no-measure", "--json"),
    )
    assert code == 0
    assert json.loads(out)["steps"][1]["agreement"], "judged by the samples"


def test_no_more_than_asked_for_are_kept_and_of_the_whole_time(client, graphopt):
    code, out, _ = graphopt("record", "--most", "8", "-o", "s", "--json", "client.py", "200")
    assert code == 0
    assert json.loads(out) == {"samples": {"s/model": 8}}
    seen = [float(np.load(f)["x"][0, 0]) for f in (client / "s" / "model").iterdir()]
    assert max(seen) > 100 > min(seen)


def test_models_given_as_bytes_and_inputs_given_as_lists(folder, graphopt):
    (folder / "client.py").write_text(
        "import onnxruntime as ort\n"
        "s = ort.InferenceSession(open('model.onnx', 'rb').read())\n"
        "s.run(['y'], {'x': [[1.0] * 16]})\n"
    )
    code, _, _ = graphopt("record", "client.py")
    (file,) = (folder / "samples").glob("model-*/*.npz")
    assert code == 0
    assert np.load(file)["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pass", "ran no model"),
        ("raise SystemExit(7)", "client.py ended with 7; 0 runs were recorded"),
    ],
)
def test_a_program_that_records_nothing_is_told(folder, graphopt, text, said):
    (folder / "client.py").write_text(text)
    code, _, err = graphopt("record", "client.py")
    assert (code, said in err) == (3, True)


def test_samples_that_are_there_are_not_mixed_with_new_ones(client, graphopt):
    assert graphopt("record", "client.py", "1")[0] == 0
    code, _, err = graphopt("record", "client.py", "1")
    assert code == 2
    assert "not empty" in err
    assert graphopt("record", "nobody.py")[0] == 2
