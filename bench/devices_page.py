"""The page of bench/devices.py: small models, trained models in float and int8, refusals."""

from __future__ import annotations

from typing import Any

TARGETS = ("cpu", "ort", "openvino-f32", "litert", "mnn", "ncnn", "executorch", "stablehlo")
SPEC = "clean, fold, fuse, int8"


def page(rows: dict[str, Any]) -> str:
    """The table of small models, the one of trained models, and the refusals."""
    cells = {tuple(key.split("/")): row for key, row in rows.items()}
    names = sorted({name for kind, name, _ in cells if kind == "small"})
    targets = [t for t in TARGETS if any(key[::2] == ("small", t) for key in cells)]
    lines = [
        "# Small models on every device target",
        "",
        "`python bench/devices.py make WORK --models DIR --glyphs DIR`, then `python "
        "bench/devices.py time WORK` on a quiet machine: each file was written by its target, "
        "compared with ONNX Runtime before it was kept, and executed by its own runtime. Cells: "
        "relative L2 error against the outputs of the framework that exported the model, and the "
        "median milliseconds of a run on one thread (x86 with AVX512-VNNI), arrays in and arrays "
        "out from Python, all files of a runtime taking turns in one process.",
        "",
        f"| model | {' | '.join(targets)} |",
        f"|---|{'---|' * len(targets)}",
    ]
    for name in names:
        found = [cells.get(("small", name, t)) for t in targets]
        lines.append(f"| {name} | {' | '.join(map(_cell, found))} |")
    tried = [[row for n in names if (row := cells.get(("small", n, t)))] for t in targets]
    ran = [f"{sum('error' in row for row in rows)} of {len(rows)}" for rows in tried]
    lines.append(f"| executed | {' | '.join(ran)} |")
    trained = sorted(key for key in cells if key[0] == "glyphs")
    if trained:
        lines += [
            "",
            "# Trained models, float and int8 by each target's rules",
            "",
            "Percent of 1000 validation glyphs right, item by item; "
            f"`-p {SPEC}`, 512 samples, no step timed. Milliseconds as above. In integers: the "
            "share of multiply-accumulates whose data and weights the file has as integers; on "
            "`cpu` most become integers at run time, which it does not show. Where there are no "
            "integers (LSTM), the file is the float one but for its head. `-`: not timed; `*`: "
            "other work was on the machine; told is the time on the processor, which is more than "
            "on a quiet one.",
            "",
            "| model | target | float | int8 | points | in integers | float ms | int8 ms | "
            "int8 / float | size |",
            f"|{'---|' * 10}",
        ]
    lines += [_trained(key[1], key[2], **cells[key]) for key in trained]
    refused = sorted(key for key, row in cells.items() if "refused" in row)
    if refused:
        lines += ["", "# Refused", "", "| model | target | because |", "|---|---|---|"]
    for key in refused:
        said = cells[key]["refused"].replace("|", "/").replace("\n", " ")
        lines.append(f"| {key[1]} | {key[2]} | {said} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "refused" if "refused" in row else f"{row['error']:.1e}, {_ms(row)} ms"


def _ms(row: dict[str, Any]) -> str:
    return f"{row['ms']:.2f}{'*' * row.get('busy', False)}" if "ms" in row else "-"


def _trained(
    model: str, target: str, *, float: dict[str, Any], int8: dict[str, Any] | None = None
) -> str:
    line = f"| {model} | {target} | {float['accuracy']:.1%} | "
    if int8 is None:
        return line + f"no integers | | | {_ms(float)} | | | |"
    points = 100 * (int8["accuracy"] - float["accuracy"])
    ratio = f"{int8['ms'] / float['ms']:.2f}" if "ms" in int8 and "ms" in float else "-"
    return line + (
        f"{int8['accuracy']:.1%} | {points:+.1f} | {int8['integers']:.0%} | {_ms(float)} | "
        f"{_ms(int8)} | {ratio} | {int8['bytes'] / float['bytes']:.2f} |"
    )
