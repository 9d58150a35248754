"""Optimizers by name, in a process that bench/oodte.py can lose: JSON lines in, JSON lines out.

    python bench/oodte_tools.py

A line asks `[tool, model, result]`; the answer is `{}` or `{"refused": why}`. A tool that fails as
it says it would (an error of its own, in words) refuses; one that dies, or passes on an error of
something below it, crashes: `{"crashed": why}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def graphopt(model: str, out: str) -> str:
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from graphopt.cli import main

    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            main(["optimize", model, "-p", "clean,fold,fuse", "--no-measure", "-o", out])
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
    if code not in (0, 3):
        raise RuntimeError(f"exit {code}: {said.getvalue().strip()[-300:]}")
    return said.getvalue().strip()[-300:] if code else ""


def onnxsim(model: str, out: str) -> str:
    import onnx
    import onnxsim as tool

    made, fine = tool.simplify(onnx.load(model), certify=False)
    onnx.save(made, out)
    return "" if fine else "its own check failed"


def onnxslim(model: str, out: str) -> str:
    import onnxslim as tool

    tool.slim(model, out)
    return ""


def onnxoptimizer(model: str, out: str) -> str:
    import onnx
    import onnxoptimizer as tool

    onnx.save(tool.optimize(onnx.load(model)), out)
    return ""


def onnxruntime(model: str, out: str) -> str:
    import onnxruntime as tool

    options = tool.SessionOptions()
    options.graph_optimization_level = tool.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = out
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    tool.InferenceSession(model, options, ["CPUExecutionProvider"])
    return ""


def certify(model: str, out: str) -> dict[str, object]:
    """onnxsim's result and what its proof says of every output."""
    import onnx
    import onnxsim as tool
    from onnxsim.certify import certify as prove

    source = onnx.load(model)
    made, _ = tool.simplify(onnx.load(model), certify=False)
    report = prove(source, made, timeout_ms=10_000, total_timeout_ms=10_000)
    return {
        "outputs": report.outputs,
        "windows": [w.status for w in report.windows],
    }


def judge(model: str, out: str) -> dict[str, object]:
    from oodte_judge import judged

    return judged(Path(model), Path(out))


TOOLS = {f.__name__: f for f in (graphopt, onnxsim, onnxslim, onnxoptimizer, onnxruntime)}
ASKED = {**TOOLS, "certify": certify, "judge": judge}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the tools print is no answer
    os.dup2(1, 2)
    for line in sys.stdin:
        tool, model, out = json.loads(line)
        try:
            told = ASKED[tool](model, out)
            answer = told if isinstance(told, dict) else {"refused": told} if told else {}
        except (Exception, SystemExit) as error:
            answer = {"crashed": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
