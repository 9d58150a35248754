"""The peers of bench/targets.py: ONNX Runtime and its quantizer, OpenVINO, NNCF."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.backend import find_target
from graphopt.deploy.manifest import Manifest
from graphopt.deploy.sessions import open_manifest
from graphopt.target import Target

TRANSFORMERS = ("bert", "vit", "gpt2", "transformer")
Feeds = dict[str, np.ndarray[Any, Any]]


@dataclasses.dataclass
class Variant:
    """One way to run a model.

    `call` runs it here; `path`, `target` and `how` open it in a process of its own, where it is
    timed. `error` is relative L2, or points of accuracy lost.
    """

    name: str
    ours: bool
    call: Callable[[Feeds], dict[str, Any]]
    path: Path
    target: Target
    how: Manifest | None
    error: float = 0.0
    seconds: float = 0.0
    speed: float = 0.0
    threads: int = 0
    interval: tuple[float, float] = (0.0, 0.0)


def peers(path: Path, work: Path, calibration: list[Feeds]) -> list[Variant]:
    """ONNX Runtime float first (the reference), its quantizer three ways, OpenVINO, NNCF."""
    files: dict[str, Callable[[Path], None]] = {
        "static S8S8, its default": lambda out: static(path, out, calibration, "QInt8"),
        "static U8S8": lambda out: static(path, out, calibration, "QUInt8"),
        "dynamic": lambda out: dynamic(path, out),
    }
    cpu, found = find_target("cpu"), []
    plain = Manifest("cpu")

    def runtime(label: str, made: Callable[[], Path]) -> None:
        attempt(found, label, cpu, lambda: (made(), plain))

    runtime("ONNX Runtime float", lambda: path)
    for k, (label, make) in enumerate(files.items()):
        out = work / f"peer-{k}.onnx"
        runtime(f"ONNX Runtime quantizer, {label}", lambda make=make, out=out: once(make, out))
    native = find_target("openvino")
    fast = manifest_of(native)
    exact = dataclasses.replace(
        fast, properties={**fast.properties, "INFERENCE_PRECISION_HINT": "f32"}
    )
    attempt(found, "OpenVINO", native, lambda: (path, fast))
    attempt(found, "OpenVINO, float32", native, lambda: (path, exact))
    attempt(found, "OpenVINO + NNCF", native, lambda: (nncf(path, work, calibration), fast))
    return found


def manifest_of(target: Target) -> Manifest:
    """What OpenVINO is asked for: its CPU device, for latency."""
    return Manifest(
        target.name,
        provider="OpenVINOExecutionProvider",
        native="openvino",
        plugin="no_plugin",
        properties={"PERFORMANCE_HINT": "LATENCY"},
        extra="openvino",
    )


def once(make: Callable[[Path], None], out: Path) -> Path:
    """Make the file unless it is there."""
    if not out.is_file():
        make(out)
    return out


def attempt(
    found: list[Variant],
    label: str,
    target: Target,
    make: Callable[[], tuple[Path, Manifest]],
) -> None:
    """A peer that fails on a model is said so and left out."""
    began = time.perf_counter()
    try:
        path, how = make()
        call = open_manifest(path, how)
    except Exception as error:
        print(f"  {label}: {type(error).__name__}: {str(error)[:120]!r}", flush=True)
        return
    took = time.perf_counter() - began
    found.append(Variant(label, False, call, path, target, how, 0.0, took))


def static(path: Path, out: Path, calibration: list[Feeds], activation: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(calibration)

        def get_next(self) -> Any:
            return next(self.rest, None)

    prepared = preprocessed(path, out)
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        activation_type=QuantType[activation],
        per_channel=activation == "QUInt8",
    )


def dynamic(path: Path, out: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(preprocessed(path, out)), str(out))


def preprocessed(path: Path, out: Path) -> Path:
    """The model as the quantizer asks for it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(path), str(prepared))
    except Exception:  # it cannot infer some models' shapes; its own advice is to skip that
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    return prepared


def nncf(path: Path, work: Path, calibration: list[Feeds]) -> Path:
    import nncf as tool
    import openvino as ov

    if (work / "nncf.xml").is_file():
        return work / "nncf.xml"
    tool.set_log_level(logging.ERROR)
    kind = tool.ModelType.TRANSFORMER if any(t in path.stem for t in TRANSFORMERS) else None
    made = tool.quantize(
        ov.Core().read_model(str(path)),
        tool.Dataset(calibration),
        subset_size=len(calibration),
        model_type=kind,
    )
    ov.save_model(made, work / "nncf.xml", compress_to_fp16=False)
    return work / "nncf.xml"
