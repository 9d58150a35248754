#!/usr/bin/env python3
"""New tokens a second of a decoder at 4 bits: ONNX Runtime and llama.cpp (Q4_0), in turns.

    pip install llama-cpp-python gguf       # compiled on this machine, in an environment of its own
    python bench/llm_llamacpp.py --work DIR --onnx RESULT.onnx --graphopt .venv/bin/graphopt

RESULT.onnx is what `bench/llm.py` leaves. A GGUF of the same shape is written under DIR, blocks of
random bits with scales as its weights would have, every matrix in Q4_0. Both read a prompt and then
write one token after another, each in a process of its own; the best of `--rounds` counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

#: Weights of a block of Q4_0, and its bytes: a scale in half precision and 16 pairs.
BLOCK, BYTES = 32, 18
#: Standard deviation of integers drawn evenly from -8 to 7.
SPREAD = 4.61
#: Tokens of the prompt, as `graphopt bench --tokens` reads.
PROMPT = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--graphopt", default="graphopt")
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    sizes = {"layers": 32, "hidden": 4096, "inner": 11008, "heads": 32, "kv_heads": 32}
    for name, size in {**sizes, "vocabulary": 32000}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--decode", type=int, help=argparse.SUPPRESS)  # threads: one measurement
    args = parser.parse_args()
    path = args.work / f"llama-{args.layers}x{args.hidden}.gguf"
    if args.decode:
        print(json.dumps(decode(path, args.decode, args.tokens, args.vocabulary)))
        return
    if not path.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        write(path, args)
    print("| threads | runtime | new tokens/s | prompt tokens/s | size GB | triad GB/s |")
    print("|---|---|---|---|---|---|")
    for threads in args.threads:
        found: dict[str, list[dict[str, float]]] = {"ONNX Runtime": [], "llama.cpp": []}
        for _ in range(args.rounds):
            found["ONNX Runtime"].append(ours(args, threads))
            command = [sys.executable, *sys.argv, "--decode", str(threads)]
            found["llama.cpp"].append(said(command))
        triad = max(one["bandwidth"] for one in found["ONNX Runtime"])
        for runtime, runs in found.items():
            new, prompt = (max(r[k] for r in runs) for k in ("new_per_second", "prompt_per_second"))
            size = path.stat().st_size if runtime == "llama.cpp" else runs[0]["weight_bytes"]
            figures = [str(threads), runtime, f"{new:.2f}", f"{prompt:.1f}", f"{size / 1e9:.2f}"]
            print("| " + " | ".join([*figures, f"{triad / 1e9:.1f}"]) + " |", flush=True)


def ours(args: argparse.Namespace, threads: int) -> dict[str, float]:
    options = ["--threads", str(threads), "--tokens", str(args.tokens), "--json"]
    (row,) = said([args.graphopt, "bench", str(args.onnx), *options])["rows"]
    return row


def said(command: list[str]) -> dict:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)


def decode(path: Path, threads: int, new: int, vocabulary: int) -> dict[str, float]:
    """Tokens a second of a prompt and of new ones, which are what is likeliest each."""
    import llama_cpp as cpp

    cpp.llama_backend_init()
    model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
    how = cpp.llama_context_default_params()
    how.n_ctx, how.n_batch = 512, 512
    how.n_threads = how.n_threads_batch = threads
    context = cpp.llama_init_from_model(model, how)
    given, times = [k % 97 for k in range(1, PROMPT + 1)], []
    for _ in range(new + 1):
        array = (cpp.llama_token * len(given))(*given)
        began = time.perf_counter()
        if cpp.llama_decode(context, cpp.llama_batch_get_one(array, len(given))):
            raise SystemExit("llama.cpp does not decode")
        logits = cpp.llama_get_logits_ith(context, -1)
        times.append(time.perf_counter() - began)
        given = [int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())]
    return {
        "prompt_per_second": PROMPT / times[0],
        "new_per_second": 1 / statistics.median(times[1:]),
    }


def write(path: Path, shape: argparse.Namespace) -> None:
    """A GGUF of the shape, written tensor by tensor."""
    import gguf

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    head = shape.hidden // shape.heads
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("none")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_0))
    wide = shape.kv_heads * head
    matrices = {
        "attn_q": (shape.hidden, shape.hidden),
        "attn_k": (wide, shape.hidden),
        "attn_v": (wide, shape.hidden),
        "attn_output": (shape.hidden, shape.hidden),
        "ffn_gate": (shape.inner, shape.hidden),
        "ffn_up": (shape.inner, shape.hidden),
        "ffn_down": (shape.hidden, shape.inner),
    }
    tensors: dict[str, tuple[int, ...]] = {"token_embd": (shape.vocabulary, shape.hidden)}
    for k in range(shape.layers):
        tensors |= {f"blk.{k}.{name}": dims for name, dims in matrices.items()}
        tensors |= {f"blk.{k}.{name}": (shape.hidden,) for name in ("attn_norm", "ffn_norm")}
    tensors |= {"output_norm": (shape.hidden,), "output": (shape.vocabulary, shape.hidden)}
    q4 = gguf.GGMLQuantizationType.Q4_0
    for name, dims in tensors.items():
        given = (np.dtype(np.uint8), q4) if len(dims) > 1 else (np.dtype(np.float32), None)
        stored = (*dims[:-1], dims[-1] // BLOCK * BYTES) if len(dims) > 1 else dims
        nbytes = int(np.prod(stored)) * given[0].itemsize
        writer.add_tensor_info(f"{name}.weight", stored, given[0], nbytes, given[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for dims in tensors.values():
        if len(dims) == 1:
            writer.write_tensor_data(np.ones(dims, np.float32))
            continue
        blocks = rng.integers(0, 256, (dims[0], dims[1] // BLOCK, BYTES), np.uint8)
        scale = np.float16(1 / SPREAD / np.sqrt(dims[1]))
        blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
        writer.write_tensor_data(blocks.reshape(dims[0], -1))
    writer.close()


if __name__ == "__main__":
    main()
