"""`graphopt inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import click

from graphopt.cli.common import (
    emit_json,
    model_path,
    parse_shapes,
    profile_options,
    shape_option,
    standard,
)

#: Letters of the longest bar of a profile; tensors and causes of bytes shown (--json has them all).
BAR, SHOWN = 28, 8


@click.command("inspect")
@click.argument("model", type=model_path)
@shape_option
@profile_options
@click.option("--dims", is_flag=True, help="List the prunable dimensions and what is frozen.")
@standard
def command(
    model: str,
    shapes: tuple[str, ...],
    target: str,
    profile: bool,
    dims: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Show what is in MODEL: operators, shapes, parameters, MACs, memory, time."""
    from graphopt.analyses.binding import bind_shapes
    from graphopt.backend import named_target
    from graphopt.cli.progress import progress
    from graphopt.context import Context
    from graphopt.formats import load
    from graphopt.graph.defaults import without_habit
    from graphopt.pipeline.prepare import named

    loaded, _ = without_habit(named(load(model)))  # figures are known by the names of nodes
    bound, notes = bind_shapes(loaded, parse_shapes(shapes))
    where = named_target(target)
    ctx = Context(loaded, target=where, shapes=bound)
    with progress(not as_json) as shown:
        shown("inspecting", 0, 0)
        data = _facts(model, ctx, notes)
        if profile:
            shown("profiling", 0, 0)
            data["profile"] = _profile(ctx)
        if dims:
            shown("finding dimensions", 0, 0)
            data["dims"] = _dims(ctx)
    if as_json:
        emit_json(data)
    else:
        _print(data)


def _facts(path: str, ctx: Any, notes: list[str]) -> dict[str, Any]:
    from pathlib import Path

    from graphopt.analyses.cost import cost
    from graphopt.analyses.storage import by_cause, stored
    from graphopt.entropy.container import is_pack
    from graphopt.entropy.weighing import weighed
    from graphopt.pipeline.state import file_bytes

    model = ctx.model
    tensors, whole = stored(model), file_bytes(Path(path), model)
    packed = is_pack(Path(path))
    causes = weighed(Path(path)) if packed else by_cause(tensors, whole)
    found = ctx.get(cost)
    macs: Counter[str] = Counter()
    params: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        counts[name] += 1
        cost_of = found.nodes.get(node.name or "")
        if cost_of is not None:
            macs[name] += cost_of.macs or 0
            params[name] += cost_of.params
    return {
        "model": path,
        "bytes": whole,
        "packed": packed,
        "bytes_by_cause": causes,
        "tensors": [dataclasses.asdict(t) for t in tensors],
        "ir_version": model.ir_version,
        "opsets": dict(model.graph.opset_imports),
        "producer": " ".join(x for x in (model.producer_name, model.producer_version) if x),
        "inputs": [_value(v) for v in model.graph.inputs if v.name not in model.graph.initializers],
        "outputs": [_value(v) for v in model.graph.outputs],
        "measured_at": {k: list(v) for k, v in ctx.shapes.items()},
        "nodes": sum(counts.values()),
        "params": found.params,
        "param_bytes": found.param_bytes,
        "macs": found.macs,
        "macs_unknown": list(found.unknown),
        "peak_activation_bytes": found.peak_activation_bytes,
        "operators": [
            {"operator": k, "count": n, "macs": macs[k], "params": params[k]}
            for k, n in sorted(counts.items(), key=lambda i: (-macs[i[0]], -i[1], i[0]))
        ],
        "notes": notes,
    }


def _dims(ctx: Any) -> dict[str, Any]:
    """The prunable dimensions, each with the share of the MACs and parameters that it carries."""
    from graphopt.analyses.dims import dimensions
    from graphopt.analyses.dims.cost_model import Of, work

    found = ctx.get(dimensions)
    inner = [name for name, dim in found.prunable.items() if dim.scope == "inner"]
    data: dict[str, Any] = found.to_json()
    of: Of
    for of in ("macs", "params"):
        amount = work(found.prunable, of, ctx)
        data[of] = {"inner": amount.free(inner), "all": amount.free(found.prunable)}
        for row in data["dims"]:
            row[of] = amount.saved({}, row["name"], 0.0) / (amount.total or 1.0)
    return data


def _value(value: Any) -> dict[str, Any]:
    shape = (
        None if value.shape is None else [d if isinstance(d, int) else str(d) for d in value.shape]
    )
    return {
        "name": value.name,
        "type": value.dtype.name if value.dtype is not None else None,
        "shape": shape,
    }


def _profile(ctx: Any) -> list[dict[str, Any]]:
    """Milliseconds per node, slowest first."""
    import tempfile
    from pathlib import Path

    from graphopt.backend import backend_of
    from graphopt.errors import UsageError
    from graphopt.samples import stand_ins

    backend = backend_of(ctx.target)
    if backend is None or not ctx.target.measured:
        raise UsageError(f"target '{ctx.target.name}' cannot be measured on this machine")
    feeds = next(iter(stand_ins(ctx.model, seed=0, shapes=ctx.shapes)))
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = backend.lower(ctx.model, ctx.target, Path(folder, "model.onnx"))
        times = backend.profile(path, feeds, ctx.target)
    total = sum(times.values()) or 1.0
    ordered = sorted(times.items(), key=lambda i: -i[1])
    return [{"node": n, "ms": ms, "share": ms / total} for n, ms in ordered]


def _print(data: dict[str, Any]) -> None:
    from graphopt.reporting.text import out, table
    from graphopt.reporting.units import count, size

    console = out()
    facts = table("", "")
    facts.add_row("model", data["model"])
    facts.add_row("opsets", ", ".join(f"{k or 'ai.onnx'} {v}" for k, v in data["opsets"].items()))
    facts.add_row("producer", data["producer"] or "-")
    for kind in ("inputs", "outputs"):
        for value in data[kind]:
            shape = (
                "?" if value["shape"] is None else "x".join(map(str, value["shape"])) or "scalar"
            )
            facts.add_row(kind[:-1], f"{value['name']}  {value['type']}  {shape}")
    facts.add_row("size", size(data["bytes"]))
    facts.add_row("parameters", f"{count(data['params'])} in {size(data['param_bytes'])}")
    facts.add_row("MACs", count(data["macs"]) + (" at least" if data["macs_unknown"] else ""))
    facts.add_row("peak activations", size(data["peak_activation_bytes"]))
    facts.add_row("nodes", str(data["nodes"]))
    console.print(facts)
    operators = table("operator", ">count", ">MACs", ">params")
    for item in data["operators"]:
        operators.add_row(
            item["operator"], str(item["count"]), count(item["macs"]), count(item["params"])
        )
    console.print(operators)
    _print_storage(console, data)
    if "profile" in data:
        times = table("node", ">ms", ">share", "")
        most = max((item["share"] for item in data["profile"]), default=1.0)
        for item in data["profile"][:30]:
            bar = "━" * round(BAR * item["share"] / most)
            times.add_row(item["node"], f"{item['ms']:.3f}", f"{item['share']:.1%}", bar)
        if len(data["profile"]) > 30:
            rest = data["profile"][30:]
            times.add_row(f"{len(rest)} more", f"{sum(i['ms'] for i in rest):.3f}", "", "")
        console.print(times)
    if "dims" in data:
        _print_dims(console, data["dims"])
    for note in data["notes"]:
        console.print(note)


def _print_storage(console: Any, data: dict[str, Any]) -> None:
    """Bytes by cause, and the largest tensors."""
    from graphopt.reporting.text import table
    from graphopt.reporting.units import size

    causes = table("bytes of", ">bytes", ">share")
    for cause, held in list(data["bytes_by_cause"].items())[:SHOWN]:
        causes.add_row(cause, size(held), f"{held / max(data['bytes'], 1):.1%}")
    console.print(causes)
    tensors = table("tensor", "type", "shape", ">bytes unpacked" if data["packed"] else ">bytes")
    for one in data["tensors"][:SHOWN]:
        shape = "x".join(map(str, one["shape"])) or "scalar"
        tensors.add_row(one["name"], one["dtype"], shape, size(one["bytes"]))
    console.print(tensors)


def _print_dims(console: Any, dims: dict[str, Any]) -> None:
    from graphopt.reporting.text import table

    console.print(
        "prunable: "
        + ", ".join(
            f"{dims[of]['inner']:.0%} of the {name} (scope all: {dims[of]['all']:.0%})"
            for of, name in (("macs", "MACs"), ("params", "parameters"))
        )
    )
    made = table("dimension", ">units", "kind", "scope", ">MACs", ">tensors", "carried by")
    for dim in dims["dims"]:
        nodes = list(dict.fromkeys(m["node"] for m in dim["members"] if m["node"]))
        shown = ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
        made.add_row(
            dim["name"], str(dim["size"]), dim["kind"], dim["scope"],
            f"{dim['macs']:.0%}", str(len(dim["members"])), shown,
        )  # fmt: skip
    console.print(made)
    reasons = Counter(f["reason"] for f in dims["frozen"])
    frozen = table(">axes", "frozen because", "for example")
    for reason, n in reasons.most_common():
        first = next(f for f in dims["frozen"] if f["reason"] == reason)
        frozen.add_row(str(n), reason, f"{first['tensor']} axis {first['axis']}")
    console.print(frozen)
