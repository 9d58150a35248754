"""`graphopt targets`: what there is, and what of a model falls off the devices not run here."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from graphopt.cli.common import emit_json, standard


@click.command("targets")
@click.argument("model", required=False)
@standard
def command(model: str | None, as_json: bool, debug: bool) -> None:
    """List what --target takes: which run and are measured here, and what the others need.

    With MODEL: what of it falls off the devices that cannot be run here, node by node, and why.
    """
    if model is not None:
        _falls(model, as_json)
        return
    from graphopt.backend import every_target
    from graphopt.errors import MissingExtra

    listed: list[dict[str, Any]] = []
    for backend, name, target in every_target():
        item: dict[str, Any] = {
            "name": name,
            "backend": backend.name,
            "measured": False,
            "absent": None,
        }
        if isinstance(target, MissingExtra):
            listed.append({**item, "absent": str(target)})
            continue
        scheme = target.int8
        listed.append(
            {
                **item,
                "measured": target.measured,
                "isa": target.isa,
                "precisions": target.precisions,
                "int8": scheme and f"{scheme.activation} x {scheme.weight}",
                "no_int8": target.no_int8,
                "channel_multiple": target.channel_multiple,
            }
        )
    if as_json:
        emit_json(listed)
        return
    from graphopt.reporting.text import out, table

    made = table("target", "here", "precisions", "int8", ">channels x", "instructions")
    for item in listed:
        if item["absent"]:
            made.add_row(item["name"], "absent", *[""] * 4)
            continue
        made.add_row(
            item["name"],
            "measured" if item["measured"] else "not measured",
            ", ".join(item["precisions"]),
            item["int8"] or "-",
            str(item["channel_multiple"]),
            ", ".join(item["isa"]) or "-",
        )
    console = out()
    console.print(made)
    for reason in dict.fromkeys(i["absent"] for i in listed if i["absent"]):
        console.print(reason)
    for item in listed:
        if item.get("no_int8"):
            console.print(f"{item['name']}: no int8, {item['no_int8']}")
    console.print("auto: the pipeline for every target measured here, the fastest result kept")
    console.print(
        "./file.py:NAME: the first target of a backend of your own (docs/write-a-backend.md)"
    )


def _falls(path: str, as_json: bool) -> None:
    from graphopt import plugins
    from graphopt.formats import load

    model = load(path)
    count = sum(n.op_type != "Constant" for n in model.graph)
    found = {}
    for name, entry in plugins.find(plugins.BACKENDS).items():
        if (check := getattr(entry.load(), "falls_off", None)) is not None:
            found[name] = [dataclasses.asdict(fall) for fall in check(model)]
    if as_json:
        emit_json({"model": path, "nodes": count, "falls_off": found})
        return
    from graphopt.reporting.text import out, table

    console = out()
    for name, falls in found.items():
        made = table("node", "operator", f"falls off {name}")
        for fall in falls:
            made.add_row(fall["node"], fall["operator"], fall["reason"])
        console.print(f"{name}: {len(falls)} of {count} nodes fall off")
        if falls:
            console.print(made)
