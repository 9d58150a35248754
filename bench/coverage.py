"""Parameters left when half of the units of every prunable dimension go, beside onnxsim's pruning.

    python bench/coverage.py --models DIR [--models DIR ...] [--out bench/results/coverage.md]

*inner* and *all* are the two scopes, on the graph as it was exported. onnxsim prunes structures and
attention heads at sparsity 0.5, after simplifying (its Python functions, the wider of its two).
Every pruned model is run, and must keep the names, shapes and types of its outputs.
With `--modules build.py`, a file whose dict `TINY` makes (module, inputs, input names) by name,
Torch-Pruning prunes the same modules at 0.5 with their last layer left out, as its examples do. Its
share is of the modules' parameters; ours is of every constant in the file, batch norms' statistics
and small shape constants too, so that the same cut reads up to 0.01 higher in our columns.

Scopes are not the same everywhere: on MobileNetV2 onnxsim halves the residual streams (which *all*
does and *inner* does not) and leaves the last 1280 channels; layer by layer, nothing else differs.
In ShuffleNet a grouped convolution, the shuffle and the next grouped convolution share a residual
stream: channels that leave together do so three at a time, one from each group of either
convolution, and only the branch is inner.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import Context, cut
from graphopt.analyses.dims import dimensions
from graphopt.execution.runtime import run


def parameters(model: ir.Model) -> int:
    """Elements of initializers and constant tensors."""
    held = [v.const_value for v in model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            held.append(node.attributes["value"].as_tensor())
    return sum(t.size for t in held if t is not None)


def same_interface(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return [(n, v.shape, v.dtype) for n, v in a.items()] == [
        (n, v.shape, v.dtype) for n, v in b.items()
    ]


def ours(path: Path, scope: str, feeds, want) -> tuple[float, dict[str, int]]:
    model = ir.load(path)
    before = parameters(model)
    dims = Context(model).get(dimensions)
    chosen = [d for d in dims.prunable.values() if scope == "all" or d.scope == "inner"]
    cut(model, {d.name: np.arange(d.size - d.size // 2) for d in chosen})
    assert same_interface(want, run(model, feeds)), path
    kinds: dict[str, int] = {}
    for d in chosen:
        kinds[d.kind] = kinds.get(d.kind, 0) + 1
    return parameters(model) / before, kinds


def onnxsim_left(path: Path, feeds, want) -> str:
    import onnxsim

    simple, _ = onnxsim.simplify(onnx.load(path))
    before = parameters(ir.from_proto(simple))
    try:
        pruned = onnxsim.apply_structured_pruning(simple, sparsity=0.5)
        pruned = onnxsim.apply_attention_head_pruning(pruned, sparsity=0.5)
        result = ir.from_proto(pruned)
        left = parameters(result) / before
        return f"{left:.2f}" if same_interface(want, run(result, feeds)) else f"{left:.2f} (wrong)"
    except Exception as error:  # a peer's failure is a result
        return type(error).__name__


def torch_pruning_left(modules: Path, name: str) -> str:
    """In a process of its own: a module that it breaks may hang or exhaust memory."""
    code = f"""
import importlib.util, warnings, logging
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
import torch, torch_pruning as tp
spec = importlib.util.spec_from_file_location("modules", {str(modules)!r})
zoo = importlib.util.module_from_spec(spec); spec.loader.exec_module(zoo)
torch.manual_seed(0)
model, inputs, _ = zoo.TINY[{name!r}]()
count = lambda: sum(p.numel() for p in model.parameters())
shape, before = model(*inputs).shape, count()
linear = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
last = [m for m in model.modules() if isinstance(m, linear)][-1:]
example = inputs if len(inputs) > 1 else inputs[0]
tp.pruner.MagnitudePruner(
    model, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
    ignored_layers=last,
).step()
after = model(*inputs).shape
print("LEFT", f"{{count() / before:.2f}}" + ("" if after == shape else " (other output shape)"))
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "over 120 s"
    left = [line[5:] for line in done.stdout.splitlines() if line.startswith("LEFT ")]
    return left[0] if left else "fails"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-onnxsim", action="store_true")
    parser.add_argument("--modules", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [
        "| model | inner | all | onnxsim | Torch-Pruning | dimensions |",
        "|---|---|---|---|---|---|",
    ]
    torch_left: dict[str, str] = {}
    for folder in args.models:
        for path in sorted(folder.glob("*.onnx")):
            arrays = np.load(path.with_suffix(".npz"))
            feeds = {k[3:]: arrays[k] for k in arrays.files if k.startswith("in:")}
            want = {k[4:]: arrays[k] for k in arrays.files if k.startswith("out:")}
            inner, _ = ours(path, "inner", feeds, want)
            whole, kinds = ours(path, "all", feeds, want)
            peer = "" if args.no_onnxsim else onnxsim_left(path, feeds, want)
            if args.modules and path.stem not in torch_left:
                torch_left[path.stem] = torch_pruning_left(args.modules, path.stem)
            torch_peer = torch_left.get(path.stem, "")
            found = ", ".join(f"{n} {k}" for k, n in kinds.items())
            rows.append(
                f"| {folder.name}/{path.stem} | {inner:.2f} | {whole:.2f} | {peer} | {torch_peer} "
                f"| {found} |"
            )
            print(rows[-1], flush=True)
    if args.out:
        head, *about = (p for p in __doc__.split("\n\n") if not p.startswith("    "))
        text = [head, *(" ".join(p.split()) for p in about), "\n".join(rows)]
        args.out.write_text("\n\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
