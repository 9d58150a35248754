"""Run a lowered model with onnxruntime alone: python model.run.py INPUTS.npz OUTPUTS.npz

Opens the .onnx file beside this script as its .session.json says: provider, options, caches,
threads. Inputs and outputs are arrays by name. Import it to keep the session:

    run = Model()
    outputs = run({"x": array})
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class Model:
    """A session, and the binding of its inputs and outputs where the manifest asks for one."""

    def __init__(self, path: Path | None = None) -> None:
        script = Path(__file__).resolve()
        path = path or script.with_name(script.name.removesuffix(".run.py") + ".onnx")
        manifest = path.with_name(path.name.removesuffix(".onnx") + ".session.json")
        how = json.loads(manifest.read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = how.get("threads", 0)
        options.enable_cpu_mem_arena = how.get("arena", True)
        options.enable_mem_pattern = how.get("pattern", True)
        for key, value in how.get("config", {}).items():
            options.add_session_config_entry(key, value)
        for name, size in how.get("free_dimensions", {}).items():
            options.add_free_dimension_override_by_name(name, size)
        given = {
            key: str(path.parent / value) if key.endswith("_path") else value
            for key, value in how.get("provider_options", {}).items()
        }
        providers: list[Any] = [(how.get("provider", "CPUExecutionProvider"), given)]
        behind = [*how.get("fallbacks", []), "CPUExecutionProvider"]
        providers += [name for name in behind if name != providers[0][0]]
        absent = {providers[0][0]} - set(ort.get_available_providers())
        if absent:
            sys.exit(f"this onnxruntime has no {absent.pop()}; install graphopt[{how['extra']}]")
        self.session = opened(path, options, providers)
        self.outputs = [o.name for o in self.session.get_outputs()]
        sizes = [d for o in self.session.get_outputs() for d in o.shape]
        self.static = all(isinstance(d, int) for d in sizes)
        self.device = how.get("bind", "")
        self.held: dict[str, Any] = {}
        if self.device:
            self.binding = self.session.io_binding()
            self.bind_outputs()

    def bind_outputs(self) -> None:
        """Have outputs held where the device computes them."""
        for name in self.outputs:
            self.binding.bind_output(name, self.device)

    def __call__(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Run once: arrays by input name in, arrays by output name out."""
        if not self.device:
            return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))
        fresh = not self.static
        for name, array in feeds.items():
            array = np.ascontiguousarray(array)
            held = self.held.get(name)
            if held is not None and tuple(held.shape()) == array.shape:
                held.update_inplace(array)
                continue
            self.held[name] = ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)
            self.binding.bind_ortvalue_input(name, self.held[name])
            fresh = True
        if fresh:
            self.bind_outputs()
        self.session.run_with_iobinding(self.binding)
        return dict(zip(self.outputs, self.binding.copy_outputs_to_cpu(), strict=True))


def opened(path: Path, options: Any, providers: list[Any]) -> Any:
    """A session on the first provider, without a CUDA graph where the model allows none."""
    name, given = providers[0]
    if name != "CPUExecutionProvider":
        ort.preload_dlls()  # CUDA's libraries, where they are Python packages
    if name == "TensorrtExecutionProvider":
        with contextlib.suppress(ImportError):
            import_module("tensorrt")  # which loads its own
    try:
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:
        if "graph capture" not in str(error):
            raise
        eager = {k: "0" if "cuda_graph" in k else v for k, v in given.items()}
        return opened(path, options, [(name, eager), *providers[1:]])
    if name not in session.get_providers():
        sys.exit(f"onnxruntime could not load {name}; its log says which library is missing")
    return session


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with np.load(sys.argv[1]) as given:
        np.savez(sys.argv[2], **Model()({name: given[name] for name in given.files}))
