"""What runs in the framework's interpreter: converts a model, then runs it on inputs it is given.

    python -I child.py FRAMEWORK PATH FOLDER

writes FOLDER/model.onnx and answers in lines of JSON on standard output, first what came of the
conversion, then one for each line of standard input: the name of an .npz file in FOLDER, whose
arrays it runs the model on. It imports nothing of graphopt, which that interpreter may not have.
"""

import importlib.util
import json
import os
import sys
import traceback
from typing import Any

__all__ = ["main"]


def main(framework: str, path: str, folder: str) -> None:
    """Convert and answer; frameworks that print do so on standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**told: object) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    here = os.path.dirname(os.path.abspath(__file__))
    script = os.path.join(here, "frameworks", f"{framework}.py")
    sys.path.append(os.path.join(here, "inside"))
    spec = importlib.util.spec_from_file_location(f"convert_{framework}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        predict = module.convert(path, os.path.join(folder, "model.onnx"))
    except ModuleNotFoundError as error:
        return answer(missing=error.name or str(error))
    except Exception as error:
        traceback.print_exc()
        if traceback.extract_tb(error.__traceback__)[-1].filename == script:
            return answer(refused=str(error))  # said here, not by the converter
        return answer(error=_line(error))
    answer(done=True)
    import numpy as np

    for line in sys.stdin:
        name = os.path.join(folder, line.strip())
        try:
            with np.load(name, allow_pickle=False) as held:
                feeds = {k: _text(held[k]) for k in held.files}
            made = predict(feeds)
            arrays = {str(k): np.asarray(x) for k, x in enumerate(made) if x is not None}
            plain: Any = {k: x.astype(str) if x.dtype.kind == "O" else x for k, x in arrays.items()}
            np.savez(name + ".out.npz", **plain)
        except Exception as error:
            traceback.print_exc()
            answer(error=_line(error))
        else:
            answer(done=True)
    return None


def _line(error: Exception) -> str:
    said = str(error).partition("Stack trace:")[0]
    return f"{type(error).__name__}: {' '.join(said.split())[:400]}"


def _text(x: Any) -> Any:
    return x.astype(object) if x.dtype.kind == "U" else x


if __name__ == "__main__":
    main(*sys.argv[1:4])
