"""Olive's TPE over its own quantizer, on a trained model: the peer of bench/search.py.

    python bench/search_olive.py --models DIR --only resnet20 [--trials 20]

Runs where `olive-ai` is installed (an environment of its own). Olive chooses between static and
dynamic quantization and all of the pass's options by latency on the CPU, with at most half a point
of accuracy to lose on 2,000 validation images, and 256 unlabelled samples for calibration: what
bench/search.py gives its own search. The fastest model that keeps the limit is written beside
`--out`, where `graphopt bench` or `--part beside` of bench/search.py times it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

#: Points of accuracy that may be lost.
MAX_DROP = 0.5
SCRIPT = """
import numpy as np
import torch
from olive.data.registry import Registry

def images(kind, many):
    with np.load({glyphs!r}) as held:
        x = (held["x_" + kind][:many].astype(np.float32) / 255 - 0.5) / 0.25
        y = held["y_val"][:many] if kind == "val" else np.zeros(len(x), np.int64)
    return x, y

class Set(torch.utils.data.Dataset):
    def __init__(self, kind, many):
        self.x, self.y = images(kind, many)
    def __len__(self):
        return len(self.x)
    def __getitem__(self, k):
        return {{{input!r}: torch.tensor(self.x[k])}}, torch.tensor(int(self.y[k]))

@Registry.register_dataset("glyphs_val")
def glyphs_val(data_dir=None, **_):
    return Set("val", 2000)

@Registry.register_dataset("glyphs_train")
def glyphs_train(data_dir=None, **_):
    return Set("train", 256)

@Registry.register_post_process("top")
def top(output, **_):
    logits = output if torch.is_tensor(output) else next(iter(output.values()))
    return logits.argmax(1)
"""


def config(path: Path, glyphs: Path, script: Path, folder: Path, trials: int) -> dict[str, Any]:
    import onnx

    (given,) = onnx.load(path, load_external_data=False).graph.input
    script.write_text(SCRIPT.format(glyphs=str(glyphs), input=given.name))

    def data(name: str, batch: int) -> dict[str, Any]:
        return {
            "name": name,
            "user_script": str(script),
            "load_dataset_config": {"type": name},
            "dataloader_config": {"batch_size": batch},
            "post_process_data_config": {"type": "top"},
        }

    return {
        "input_model": {"type": "ONNXModel", "model_path": str(path)},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [
                    {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                ],
            }
        },
        "data_configs": [
            data("glyphs_val", 250),
            {**data("glyphs_val", 1), "name": "one"},
            data("glyphs_train", 1),
        ],
        "evaluators": {
            "both": {
                "type": "OnnxEvaluator",
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "glyphs_val",
                        "sub_types": [
                            {
                                "name": "accuracy_score",
                                "metric_config": {"task": "multiclass", "num_classes": 47},
                                "priority": 1,
                                "goal": {"type": "max-degradation", "value": MAX_DROP / 100},
                            }
                        ],
                    },
                    {
                        "name": "latency",
                        "type": "latency",
                        "data_config": "one",
                        "sub_types": [
                            {
                                "name": "avg",
                                "priority": 2,
                                "goal": {"type": "percent-min-improvement", "value": 1},
                            }
                        ],
                    },
                ],
            }
        },
        "passes": {"quantize": {"type": "OnnxQuantization", "data_config": "glyphs_train"}},
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "tpe",
            "max_iter": trials,
            "sampler_config": {"seed": 0},
        },
        "evaluator": "both",
        "host": "here",
        "target": "here",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["resnet20", "transformer", "lstm"])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("olive"))
    args = parser.parse_args()
    from olive.workflows import run

    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            paths = (args.models / f"{name}.onnx").resolve(), (args.models / "glyphs.npz").resolve()
            made = config(*paths, folder / "script.py", folder, args.trials)
            began = time.perf_counter()
            found = run(made)
            best = found.get_best_candidate() if found.has_output_model() else None
            row = {"model": name, "trials": args.trials, "seconds": time.perf_counter() - began}
            if best is not None:
                values = {k.split("-")[0]: v["value"] for k, v in best.metrics_value.items()}
                row |= {"accuracy": 100 * values["accuracy"], "latency": values["latency"]}
                shutil.copy(best.model_path, args.out / f"{name}.onnx")
            (args.out / f"{name}.json").write_text(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
