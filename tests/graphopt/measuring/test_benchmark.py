import json
import time
import xml.etree.ElementTree as ET
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.backend import find_target
from graphopt.cli import main
from graphopt.cli.plot import latency_svg
from graphopt.deploy.manifest import Manifest, write_manifest
from graphopt.errors import InputError
from graphopt.formats import save
from graphopt.measuring import footprint as weighing
from graphopt.measuring.benchmark import Row, benchmark
from graphopt.measuring.statistics import interleave
from graphopt.testing import parse_model


@pytest.fixture
def free(tmp_path):
    """A model whose batch axis is free."""
    model = parse_model("y = MatMul(x, w)", constants={"w": np.eye(3, dtype=np.float32)})
    model.graph.inputs[0].shape = ir.Shape(["batch", 3])
    model.graph.outputs[0].shape = ir.Shape(["batch", 3])
    save(model, tmp_path / "free.onnx")
    return tmp_path / "free.onnx"


@pytest.fixture
def fixed(tmp_path):
    save(parse_model("y = Relu(x)"), tmp_path / "fixed.onnx")
    return tmp_path / "fixed.onnx"


def test_every_combination_is_a_row_with_all_figures(free):
    cpu = find_target("cpu")
    found = benchmark([free], [cpu], threads=[1, 2], batches=[1, 4], seconds=0.05)
    assert [(r.threads, r.batch) for r in found.rows] == [(1, 1), (2, 1), (1, 4), (2, 4)]
    assert set(found.noise) == {1, 4}
    for row in found.rows:
        assert row.refused == ""
        assert 0 < row.median_ms <= row.p90_ms <= row.p99_ms
        assert row.per_second == pytest.approx(row.batch * 1e3 / row.median_ms)
        assert row.ci[0] <= row.ratio <= row.ci[1]
        assert row.load_ms > 0
        assert row.runs >= 5
    assert found.rows[0].ratio == 1.0


def test_a_model_is_opened_by_its_manifest(free):
    write_manifest(free, Manifest("cpu", threads=1, free_dimensions={"batch": 4}))
    found = benchmark([free], [find_target("cpu")], batches=[1, 4], seconds=0.05)
    assert [r.threads for r in found.rows] == [1, 1]
    assert [bool(r.refused) for r in found.rows] == [True, False], "the manifest fixes the batch"


def test_without_batches_the_model_runs_as_it_is(fixed):
    (row,) = benchmark([fixed], [find_target("cpu")], seconds=0.05).rows
    assert row.batch is None
    assert row.refused == ""


def test_a_fixed_batch_axis_and_other_machines_are_refused_with_the_reason(fixed):
    cpu, other = find_target("cpu"), find_target("cpu-arm")
    found = benchmark([fixed], [cpu, other], batches=[8], seconds=0.05)
    assert [r.refused for r in found.rows] == [
        "its batch axis is fixed at 2",
        "it cannot be measured on this machine",
    ]


def test_quick_runs_are_repeated_inside_a_sample_and_slow_ones_are_not():
    count = 0

    def run(seconds):
        nonlocal count
        count += 1
        if seconds:
            time.sleep(seconds)

    slow = interleave([partial(run, 0.02)], 0.0)
    assert len(slow) == 5
    assert count < 15
    before = count
    assert len(interleave([partial(run, 0)], 0.0)) == 5
    assert count - before > 1100  # warming up alone takes at most 1,000


def test_the_command_prints_a_table_json_and_a_plot(free, tmp_path, capsys):
    plot = tmp_path / "plot.svg"
    arguments = ["bench", str(free), "--batch", "1,2", "--threads", "1", "--seconds", "0.05"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--plot", str(plot)])
    assert done.value.code == 0
    assert "free.onnx" in capsys.readouterr().out
    assert ET.fromstring(plot.read_text()).tag.endswith("svg")
    with pytest.raises(SystemExit):
        main([*arguments, "--json"])
    data = json.loads(capsys.readouterr().out)
    assert [r["batch"] for r in data["rows"]] == [1, 2]
    assert set(data["noise"]) == {"1", "2"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "none"], "--threads"),
        (["--batch", "0"], "--batch"),
        (["--targets", ""], "--targets"),
        (["--targets", "gpu"], "gpu"),
        (["--plot", "a.png"], "FILE.svg"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(free, arguments, said, capsys):
    with pytest.raises(SystemExit) as done:
        main(["bench", str(free), *arguments])
    assert done.value.code == 2
    assert said in capsys.readouterr().err


def test_a_missing_model_is_an_input_error(tmp_path):
    with pytest.raises(InputError):
        benchmark([tmp_path / "none.onnx"], [find_target("cpu")])


def test_bars_are_as_long_as_the_medians():
    rows = [
        Row("a<b.onnx", "cpu", 1, None, median_ms=10.0, p90_ms=20.0),
        Row("c.onnx", "cpu", 1, 8, median_ms=5.0, p90_ms=6.0),
        Row("d.onnx", "cpu", 1, 8, refused="no"),
    ]
    bars = [e for e in ET.fromstring(latency_svg(rows)).iter() if e.get("height") == "18"]
    widths = [float(e.get("width")) for e in bars]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)


@pytest.mark.skipif(not weighing.STATUS.is_file(), reason="memory is read from /proc")
def test_memory_is_what_the_model_adds(tmp_path):
    """Weights of 32 MiB: at least they are resident, and not much more than a few copies."""
    weights = np.zeros((2048, 4096), np.float32)
    model = parse_model("y = MatMul(x, w)", inputs={"x": (1, 2048)}, constants={"w": weights})
    save(model, tmp_path / "large.onnx")
    (row,) = benchmark([tmp_path / "large.onnx"], [find_target("cpu")], seconds=0.05).rows
    assert 2**25 <= row.memory_bytes <= 2**27
