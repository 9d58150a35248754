import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def gate(**options):
    environment = {**os.environ, "BASELINE": "model.onnx", "MODEL": "o.onnx", **options}
    command = [sys.executable, str(ROOT / "tools" / "gate.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_gate_tells_in_a_table_what_the_model_costs(folder, graphopt, brief):
    graphopt("optimize", "model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx")
    done = gate(MAX_SIZE="1MB", GITHUB_STEP_SUMMARY="summary.md", REPORT="page.html")
    assert done.returncode == 0, done.stderr
    text = Path("graphopt-gate.md").read_text()
    assert text.startswith("<!-- graphopt gate -->\n### The model keeps its budget\n")
    assert re.search(r"^\| size \| [\d,]+ bytes \| [\d,]+ bytes \| \d\.\d+ \|$", text, re.MULTILINE)
    assert Path("summary.md").read_text() == text.partition("\n")[2]
    assert Path("page.html").read_bytes().startswith(b"<!-- graphopt page -->")
    done = gate(MAX_SIZE="10B", REPORT="page.html")
    assert done.returncode == 4
    assert "over --max-size (10)" in Path("graphopt-gate.md").read_text()
    assert gate(MODEL="none.onnx").returncode == 3


def test_the_action_hands_every_input_to_the_gate():
    action = (ROOT / "action.yml").read_text()
    code = (ROOT / "tools" / "gate.py").read_text()
    handed = re.findall(r"^        (\w+): \$\{\{ inputs\.([\w-]+) \}\}$", action, re.MULTILINE)
    for variable, name in handed:
        if variable != "GH_TOKEN":
            assert variable == name.upper().replace("-", "_")
            assert variable in code or f'"{name}"' in code
    assert len(handed) == 8
    runs = re.findall(r"run: (.*)", action)
    assert not any("${{" in line for line in runs)  # nothing of a pull request is code
