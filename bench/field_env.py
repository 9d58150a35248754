"""The environment of bench/field.py: clients and peers in one, NNCF in another.

Packages are installed by name without what they ask for, which clashes; what a client does need is
named with it. The runtime is of the version that runs this file, so that graphopt sees the same.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

from field_client import Client

#: What clients and peers share, with all that these ask for.
BASE = [
    "onnx",
    "onnxsim",
    "onnxslim",
    "numpy",
    "scipy",
    "pillow",
    "opencv-python-headless",
    "librosa",
    "scikit-learn",
    "scikit-image",
    "matplotlib",
    "mne",
    "espeakng-loader",
    "soxr",
    "soundfile",
    "cython",
    "setuptools<80",
    "wheel",
]
#: Small things that the packages' imports ask for.
SMALL = [
    "click",
    "python-dotenv",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "fsspec",
]
#: torch first, and of this version: what asks for it accepts no other build.
TORCH = "torch==2.13.0"


def make(env: Path, clients: Iterable[Client], nncf: bool) -> Path:
    """The environment's Python, with all packages installed; what is there stays."""
    wanted = sorted({p for one in clients for p in one.package.split()} - {"torch", "mne"})
    runtime = f"onnxruntime=={importlib.metadata.version('onnxruntime')}"
    python = env / "env" / "bin" / "python"
    done = env / "installed.txt"
    if not done.is_file() or done.read_text().split() != wanted:
        if not python.is_file():
            venv.create(python.parents[1], with_pip=True)
        install(python, runtime, *BASE)
        install(python, "--no-deps", TORCH)
        install(python, "--no-deps", "--no-build-isolation", *SMALL, *wanted)
        done.write_text("\n".join(wanted) + "\n")
    other = env / "nncf" / "bin" / "python"
    if nncf and not other.is_file():
        venv.create(other.parents[1], with_pip=True)
        install(other, runtime, "onnx", "nncf")
    return python


def install(python: Path, *what: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *what]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"{' '.join(command)} failed; run it again by itself to see why")
