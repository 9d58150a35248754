"""The documentation's code blocks, run in order, one folder a page.

```python file=NAME [append]    written to a file
```python                       run, with the folder importable
```console                      each line after `$ ` run; it must exit with 0 (or `# exits N`)
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|console)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if BLOCK.search(p.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page(page, tmp_path):
    if "import torch" in page.read_text():
        pytest.importorskip("torch")
    for language, info, body in BLOCK.findall(page.read_text()):
        if "file=" in info:
            name = re.search(r"file=(\S+)", info)[1]
            with (tmp_path / name).open("a" if "append" in info else "w") as file:
                file.write(body)
        elif language == "python":
            _run([sys.executable, "-c", body], tmp_path, 0, body)
        else:
            for line in re.findall(r"^\$ (.*)$", body, re.MULTILINE):
                command, _, code = line.partition("  # exits ")
                shell = command.replace("graphopt ", f"{sys.executable} -m graphopt ", 1)
                _run(["bash", "-c", shell], tmp_path, int(code or 0), command)


def _run(argv, folder, code, shown):
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{shown}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
