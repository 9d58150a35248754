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
from graphopt.sessions import OpenVinoSession

TRANSFORMERS = ("bert", "vit", "gpt2", "transformer")
Feeds = dict[str, np.ndarray[Any, Any]]


@dataclasses.dataclass
class Variant:
    """One way to run a model; `error` is relative L2, or points of accuracy lost."""

    name: str
    ours: bool
    call: Callable[[Feeds], dict[str, Any]]
    error: float = 0.0
    seconds: float = 0.0
    speed: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)


def peers(path: Path, work: Path, calibration: list[Feeds], args: Any) -> list[Variant]:
    """ONNX Runtime float first (the reference), its quantizer three ways, OpenVINO, NNCF."""
    threads = args.threads or find_target("cpu").threads
    files: dict[str, Callable[[Path], None]] = {
        "ONNX Runtime quantizer, static (default S8S8)": lambda out: static(
            path, out, calibration, "QInt8"
        ),
        "ONNX Runtime quantizer, static U8S8": lambda out: static(path, out, calibration, "QUInt8"),
        "ONNX Runtime quantizer, dynamic": lambda out: dynamic(path, out),
    }
    found = [Variant("ONNX Runtime float", False, runtime(path, threads))]
    for k, (label, make) in enumerate(files.items()):
        out = work / f"peer-{k}.onnx"
        attempt(found, label, lambda make=make, out=out: runtime(once(make, out), threads))
    attempt(found, "OpenVINO", lambda: openvino(path, threads))
    attempt(found, "OpenVINO, float32", lambda: openvino(path, threads, "f32"))
    attempt(found, "OpenVINO + NNCF", lambda: openvino(nncf(path, work, calibration), threads))
    return found


def once(make: Callable[[Path], None], out: Path) -> Path:
    """Make the file unless it is there."""
    if not out.is_file():
        make(out)
    return out


def attempt(found: list[Variant], label: str, make: Callable[[], Any]) -> None:
    """A peer that fails on a model is said so and left out."""
    began = time.perf_counter()
    try:
        call = make()
    except Exception as error:
        print(f"  {label}: {type(error).__name__}: {str(error)[:120]!r}", flush=True)
        return
    found.append(Variant(label, False, call, 0.0, time.perf_counter() - began))


def runtime(path: Path, threads: int) -> Callable[[Feeds], dict[str, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


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


def openvino(path: Path, threads: int, precision: str = "") -> Callable[[Feeds], dict[str, Any]]:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    names = [o.get_any_name() for o in model.outputs]
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
    if precision:
        properties["INFERENCE_PRECISION_HINT"] = precision
    return OpenVinoSession(core.compile_model(model, "CPU", properties), names)


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
