"""Perplexity and greedy agreement: the numbers of the definitions, with caches and without."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import graphopt
from graphopt.budget import Budget
from graphopt.cli import cli
from graphopt.errors import UsageError
from graphopt.execution.runtime import opened
from graphopt.samples import open_samples
from graphopt.verification.perplexity import bound

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((23, 16)).astype(np.float32)
HEAD = RNG.standard_normal((16, 23)).astype(np.float32)
ROWS = RNG.integers(0, 23, (3, 300))
#: The sum of what was read so far says what comes next; the cache keeps what was read.
WITH_CACHE = """<ir_version: 9, opset_import: ["": 18]>
    g (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
       float[batch, past, 16] past_0) => (float[batch, total, 16] present_0,
                                          float[batch, sequence, 23] logits) {
        e = Gather(table, input_ids)
        present_0 = Concat<axis = 1>(past_0, e)
        sums = CumSum(present_0, axis)
        size = Shape<start = 1, end = 2>(input_ids)
        from = Neg(size)
        s = Slice(sums, from, far, one)
        n = Tanh(s)
        logits = MatMul(n, head)
    }"""
PLAIN = """<ir_version: 9, opset_import: ["": 18]>
    g (int64[BATCH, SEQUENCE] tokens) => (float[BATCH, SEQUENCE, 23] logits) {
        e = Gather(table, tokens)
        s = CumSum(e, axis)
        n = Tanh(s)
        logits = MatMul(n, head)
    }"""
CONSTANTS = {
    "table": TABLE,
    "head": HEAD,
    "axis": np.array(1),
    "one": np.array([1]),
    "far": np.array([1 << 60]),
}


def model_of(text, head=HEAD):
    model = ir.from_onnx_text(text)
    for name, array in {**CONSTANTS, "head": head}.items():
        found = [v for n in model.graph for v in n.inputs if v is not None and v.name == name]
        if found:
            found[0].const_value = ir.tensor(array, name=name)
            model.graph.register_initializer(found[0])
    return model


def plain(batch="batch", sequence="sequence", head=HEAD):
    return model_of(PLAIN.replace("BATCH", batch).replace("SEQUENCE", sequence), head)


def logits_of(row, head=HEAD):
    return np.tanh(np.cumsum(TABLE[row], axis=0, dtype=np.float32)) @ head


def perplexity_of(rows, head=HEAD):
    losses = []
    for row in rows:
        x = logits_of(row, head).astype(np.float64)[:-1]
        p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        losses += [-np.log(p[k, t]) for k, t in enumerate(row[1:])]
    return np.exp(np.mean(losses))


def judged(name, model, samples, on=None):
    evaluate = bound(Budget(evaluate=name), model, open_samples(samples, model)).evaluation
    with opened(on or model) as predict:
        return evaluate(predict)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (plain(), "tokens"),
        (plain("3", "300"), "tokens"),
        (plain("1"), "tokens"),
        (model_of(WITH_CACHE), "input_ids"),
    ],
    ids=["open", "fixed", "one row", "cache"],
)
def test_perplexity_is_that_of_the_definition(model, name):
    assert judged("perplexity", model, {name: ROWS}) == pytest.approx(
        -perplexity_of(ROWS), rel=1e-5
    )


def test_padding_counts_for_nothing():
    mask = np.ones_like(ROWS)
    mask[0, :100], mask[1, 50:] = 0, 0
    given = {"input_ids": ROWS, "attention_mask": mask}
    rows = [ROWS[0, 100:], ROWS[1, :50], ROWS[2]]
    found = judged("perplexity", model_of(WITH_CACHE), given)
    assert found == pytest.approx(-perplexity_of(rows), rel=1e-5)


def greedy_of(row, start, end, head=HEAD):
    row = list(row[:start])
    while len(row) < end:
        row.append(int(logits_of(np.array(row), head)[-1].argmax()))
    return row[start:]


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda head: plain(head=head), "tokens"),
        (lambda head: plain("2", "300", head), "tokens"),
        (lambda head: model_of(WITH_CACHE, head), "input_ids"),
    ],
    ids=["open", "fixed", "cache"],
)
def test_greedy_is_the_share_written_before_the_two_part(form, name):
    rows = ROWS[:2]
    other = (HEAD + 0.1 * RNG.standard_normal(HEAD.shape)).astype(np.float32)
    shares = []
    for row in rows:
        a, b = (greedy_of(row, 150, 182, head) for head in (HEAD, other))
        shares.append(next((k for k in range(32) if a[k] != b[k]), 32) / 32)
    assert judged("greedy", form(HEAD), {name: rows}) == 1
    found = judged("greedy", form(HEAD), {name: rows}, on=form(other))
    assert found == pytest.approx(np.mean(shares))
    assert 0 < found < 1


@pytest.fixture
def folder(tmp_path):
    graphopt.save(model_of(WITH_CACHE), tmp_path / "m.onnx")
    graphopt.save(model_of(WITH_CACHE, HEAD * np.float32(1.01)), tmp_path / "n.onnx")
    np.savez(tmp_path / "tokens.npz", input_ids=ROWS)
    return tmp_path


def test_every_command_takes_it(folder):
    model, tokens = str(folder / "m.onnx"), str(folder / "tokens.npz")
    common = ["--samples", tokens, "--eval", "perplexity", "--max-drop", "0.5", "--json"]
    out = ["-p", "fold", "--no-measure", "-o", str(folder / "o.onnx")]
    done = CliRunner().invoke(cli, ["optimize", model, *out, *common], obj=[])
    assert json.loads(done.stdout)["after"]["metric"] == pytest.approx(
        -perplexity_of(ROWS), rel=1e-5
    )
    other = str(folder / "n.onnx")
    done = CliRunner().invoke(cli, ["compare", model, other, "--no-measure", *common], obj=[])
    said = json.loads(done.stdout)
    found = -perplexity_of(ROWS, HEAD * np.float32(1.01))
    assert said["b"]["metric"] == pytest.approx(found, rel=1e-5)
    assert said["a"]["metric"] == pytest.approx(-perplexity_of(ROWS), rel=1e-5)
    common[common.index("0.5")] = "0.000001"
    done = CliRunner().invoke(cli, ["compare", model, other, "--no-measure", *common], obj=[])
    assert "the metric drops by" in json.loads(done.stdout)["missed"][0]


def test_a_search_is_judged_by_it(folder):
    from graphopt.searching.trial import Bench, Task

    task = Task(str(folder / "m.onnx"), str(folder / "tokens.npz"), "greedy", "cpu", "drop")
    with Bench(task) as bench:
        bench.check_evaluation()
        assert bench.metric == 1
        assert bench.attempt("fold").loss == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--eval", "perplexity"], "give them with --samples"),
        (["--eval", "perplexiti", "--samples", "tokens.npz"], "perplexity or greedy"),
    ],
)
def test_what_cannot_be_judged_is_refused(folder, argv, said):
    argv = [str(folder / a) if a == "tokens.npz" else a for a in argv]
    command = ["optimize", str(folder / "m.onnx"), "-p", "fold", "-o", str(folder / "o.onnx")]
    done = CliRunner().invoke(cli, [*command, *argv], obj=[])
    assert said in str(done.exception)


def test_a_model_of_images_has_no_perplexity():
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["": 18]> g (float[1, 3] x) => (float[1, 3] y) {y = Relu(x)}'
    )
    samples = open_samples({"x": np.zeros((1, 3), np.float32)}, model)
    with pytest.raises(UsageError, match="for models of tokens"):
        bound(Budget(evaluate="perplexity"), model, samples)
