"""A newcomer's path, timed: from the README's first command to the page of a model of their own.

    python bench/newcomer.py model.onnx --samples calib.npz

Three commands in an empty folder, beside a fresh copy of the repository: set up and demo, optimize
with a report, open the page in a browser (until it says that it can be used; skipped without one).
What packages cost depends on the network and on pip's cache: `--no-cache` downloads all anew.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SETUP = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/graphopt demo"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
GOAL = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--passes", default="fuse,int8")
    parser.add_argument("--no-cache", action="store_true", help="download every package anew")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "newcomer.md")
    given = parser.parse_args()
    assert SETUP in README, "the README begins with another command now"
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder, "graphopt")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(here)], check=True)
        shutil.copy(given.model, here / "model.onnx")
        command = f".venv/bin/graphopt optimize model.onnx -p {given.passes} -o model.opt.onnx"
        if given.samples:
            shutil.copy(given.samples, here / "calib.npz")
            command += " --samples calib.npz"
        rows = [
            (line, timed(line, here, given.no_cache))
            for line in (SETUP, f"{command} --report report.html")
        ]
        page = here / "report.html"
        rows.append(("xdg-open report.html", opened(page)))
        size = page.stat().st_size
    total = sum(seconds for _, seconds in rows if seconds is not None)
    told = [given.model.name]
    told += ["--samples", given.samples.name] if given.samples else []
    told += ["--no-cache"] if given.no_cache else []
    lines = [
        "# A newcomer's path",
        "",
        f"`python bench/newcomer.py {' '.join(told)}`: {os.cpu_count()} processors, Python "
        f"{sys.version.split()[0]}. From the README's first",
        f"command to the page of a model of {given.model.stat().st_size / 1e6:.2f} MB "
        f"({size / 1000:.0f} kB of page); the goal is {GOAL:.0f} s in three commands.",
        "",
        "| command | seconds |",
        "|---|---:|",
        *(f"| `{c}` | {'no browser' if s is None else f'{s:.1f}'} |" for c, s in rows),
        f"| **all** | **{total:.1f}** |",
    ]
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(total > GOAL)


def timed(command: str, folder: Path, no_cache: bool) -> float:
    """Seconds of a command that must succeed."""
    told = os.environ | ({"PIP_NO_CACHE_DIR": "1"} if no_cache else {})
    began = time.perf_counter()
    subprocess.run(command, shell=True, cwd=folder, env=told, check=True, stdout=sys.stderr)
    return time.perf_counter() - began


def opened(page: Path) -> float | None:
    """Seconds until a browser shows the page and it can be used; None without a browser."""
    path = next((p for name in BROWSERS if (p := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if path is None:
        return None
    began = time.perf_counter()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto(page.as_uri())
        shown.wait_for_function("document.documentElement.dataset.ready")
        taken = time.perf_counter() - began
        browser.close()
    return taken


if __name__ == "__main__":
    main()
