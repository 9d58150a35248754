"""The documentation's code blocks, run in order, one folder a page.

```python file=NAME [append]    written to a file
```python                       run, with the folder importable
```console                      each line after `$ ` run; it must exit with 0 (or `# exits N`)

A page whose blocks need more than graphopt and its extras says so in its front matter, `needs:
PACKAGE, PACKAGE`, and is skipped where one of them is not installed.

Each runs in a process of its own, forked from one that has imported what takes long to import.
"""

import multiprocessing
import re
import shlex
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|console)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if BLOCK.search(p.read_text()))
NEEDS = re.compile(r"\A---\n(?:.*\n)*?needs: (.*)\n(?:.*\n)*?---\n")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("onnx.reference", "onnx_ir.passes", "onnxruntime", "optuna", "rich.table", "onnxscript"),
        *("torch.export._trace", "torch.onnx._internal.exporter._registration"),
        *("graphopt.cli.optimize", "graphopt.pipeline.optimize", "graphopt.tracing.convert"),
        "graphopt.packing.recovery",
        *(found.module for found in entry_points(group="graphopt.passes")),
    ]
)

PYTHON = "sys.path.insert(0, '')\nexec({body!r}, {{'__name__': '__main__'}})"
GRAPHOPT = "import graphopt.cli\ngraphopt.cli.main({argv!r})"
SHELL = "import subprocess\nsys.exit(subprocess.run(['bash', '-c', {command!r}]).returncode)"
START = """
import os, sys
# of a trial and of the parts, of 300 and 2,048: training is shown, not judged
sys.modules["graphopt.packing.recovery"].UPDATES = 60
sys.modules["graphopt.passes.distill.distill"].FEW = 256
os.chdir({folder!r})
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
for number in (1, 2):
    os.dup2(os.open('said.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT / "docs")))
def test_page(page, tmp_path):
    text = page.read_text()
    needs = re.split(r",\s*", match[1]) if (match := NEEDS.match(text)) else []
    for package in needs + ["torch"] * ("import torch" in text or "distill" in page.name):
        if find_spec(package) is None:
            pytest.skip(f"the page shows graphopt on a model of {package}, which is not installed")
    (tmp_path / "graphopt.toml").write_text("measure_seconds = 0.2\n")  # a default of the folder
    for language, info, body in BLOCK.findall(text):
        if "file=" in info:
            name = re.search(r"file=(\S+)", info)[1]
            with (tmp_path / name).open("a" if "append" in info else "w") as file:
                file.write(body)
        elif language == "python":
            run(PYTHON.format(body=body), tmp_path, 0, body)
        else:
            for line in re.findall(r"^\$ (.*)$", body, re.MULTILINE):
                command, _, code = line.partition("  # exits ")
                first, *argv = shlex.split(command)
                if argv[:1] == ["search"]:  # it reads no defaults
                    argv += ["--measure-seconds", "0.2"]
                known = GRAPHOPT.format(argv=argv) if first == "graphopt" else None
                run(known or SHELL.format(command=command), tmp_path, int(code or 0), command)


def test_every_table_that_a_page_names_is_there():
    found = re.findall(r"`([\w/]+\.py): (\w+)`", (ROOT / "docs" / "extend.md").read_text())
    assert len(found) > 20
    for path, name in found:
        text = (ROOT / path).read_text()
        assert re.search(rf"^(def )?{name}\b", text, re.MULTILINE), f"{path} has no {name}"


def run(code, folder, expected, shown):
    said = folder / "said.txt"
    said.write_text("")
    process = FORKS.Process(target=exec, args=(START.format(folder=str(folder)) + code, {}))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == expected, f"{shown}\n{said.read_text()}"
    assert "Traceback" not in said.read_text(), said.read_text()
