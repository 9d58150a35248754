"""The pipeline syntax: `prune(ratio=0.3), fuse, int8(calibrator="entropy"), ./my.py:MyPass(k=2)`.

    spec  := item ("," item)*
    item  := (name | path ":" Class) [ "(" option=literal ("," option=literal)* ")" ]

`parse` and `format_spec` are inverses: `parse(format_spec(passes)) == passes`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from graphopt import plugins
from graphopt.errors import UsageError, nearest
from graphopt.pass_ import _FILES, Pass, format_pass
from graphopt.user_code import load_attribute

__all__ = ["explanations", "format_spec", "options", "parse", "pass_class", "passes_of"]

_ITEM = re.compile(
    r"(?P<head>\w+|(?:.*?\.py|[^()]*?):[A-Za-z_]\w*)\s*(?:\((?P<options>.*)\))?", re.DOTALL
)


def parse(spec: str) -> list[Pass]:
    """The passes a spec names. Raises UsageError naming the pass, the option and what it takes."""
    return [_parse_item(item) for item in _split(spec)]


def passes_of(given: str | Iterable[Any]) -> list[Any]:
    """The passes of a spec, or of a list of specs and pass objects: `["fuse", Int8()]`.

    Raises:
        UsageError: as `parse`.
    """
    if isinstance(given, str):
        return list(parse(given))
    return [one for item in given for one in (parse(item) if isinstance(item, str) else [item])]


def format_spec(passes: Iterable[Any]) -> str:
    """The spec of these passes; foreign passes appear by their class name."""
    return ", ".join(format_pass(p) for p in passes)


def pass_class(name: str) -> type[Pass]:
    """The pass class behind a name or a `path:Class`. Raises UsageError if there is none."""
    if ":" in name:
        path, _, attribute = name.rpartition(":")
        cls = load_attribute(path, attribute, "pass")
        found: Any = cls
        if not (isinstance(found, type) and issubclass(found, Pass)):
            raise UsageError(f"{name}: {attribute} is not a subclass of graphopt.Pass")
        _FILES[found] = path
        return found
    known = plugins.find(plugins.PASSES)
    if name not in known:
        raise UsageError(
            f"no pass is called '{name}'{nearest(name, known)}. "
            "`graphopt passes` lists them; a pass of your own is ./file.py:Class"
        )
    loaded = known[name].load()
    return typing.cast(type[Pass], loaded)


def options(cls: type[Pass]) -> dict[str, tuple[Any, Any]]:
    """Each option of a pass: its type and default (`dataclasses.MISSING` if it must be given)."""
    hints = typing.get_type_hints(cls)
    return {f.name: (hints[f.name], f.default) for f in dataclasses.fields(cls) if f.init}


def explanations(cls: type[Pass]) -> dict[str, str]:
    """What each option does, from the section `Attributes:` of the pass's docstring."""
    _, _, section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def type_name(hint: Any) -> str:
    """A type as a user would say it: `number`, `"a" or "b"`, `tuple of text`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in args)
    if origin is tuple:
        if args[1:] == (...,):
            return f"tuple of {type_name(args[0])}"
        return f"({', '.join(type_name(a) for a in args)})"
    names = {float: "number", int: "integer", str: "text", bool: "True or False"}
    return "None" if hint is type(None) else names.get(hint, getattr(hint, "__name__", str(hint)))


def _split(spec: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    items, depth, quote, start, escaped = [], 0, "", 0, False
    for i, c in enumerate(spec):
        if quote:
            if c == quote and not escaped:
                quote = ""
            escaped = c == "\\" and not escaped
        elif c in "\"'" and depth:
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            items.append(spec[start:i])
            start = i + 1
    items.append(spec[start:])
    if depth != 0 or quote:
        raise UsageError(f"unbalanced brackets or quotes in '{spec}'")
    stripped = [i.strip() for i in items]
    if not any(stripped):
        raise UsageError("the pipeline is empty; name at least one pass, for example 'fuse'")
    if not all(stripped):
        raise UsageError(f"an empty item in '{spec}': two commas in a row, or one at the end")
    return stripped


def _parse_item(item: str) -> Pass:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise UsageError(f"cannot read '{item}': write name(option=value) or path.py:Class(...)")
    head, tail = match["head"], match["options"]
    cls = pass_class(head)
    given = _literals(head, tail or "", item)
    known = options(cls)
    for option, value in given.items():
        if option not in known:
            takes = ", ".join(known) or "no options"
            raise UsageError(
                f"{head}: no option '{option}'{nearest(option, known)}. It takes: {takes}"
            )
        given[option] = _checked(head, option, value, known[option][0])
    missing = [o for o, (_, d) in known.items() if d is dataclasses.MISSING and o not in given]
    if missing:
        raise UsageError(f"{head}: option '{missing[0]}' must be given")
    try:
        return cls(**given)
    except ValueError as error:
        raise UsageError(f"{head}: {error}") from error


def _literals(head: str, text: str, item: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"_({text})", mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"cannot read the options in '{item}': {error.msg}") from error
    assert isinstance(call, ast.Call)
    if call.args or any(k.arg is None for k in call.keywords):
        raise UsageError(f"{head}: options are written option=value, in '{item}'")
    given: dict[str, Any] = {}
    for keyword in call.keywords:
        assert keyword.arg is not None
        if keyword.arg in given:
            raise UsageError(f"{head}: option '{keyword.arg}' is given twice")
        try:
            given[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise UsageError(
                f"{head}: option '{keyword.arg}' must be a literal (a number, text in quotes, "
                "True, None or a tuple)"
            ) from error
    return given


def _checked(head: str, option: str, value: Any, hint: Any) -> Any:
    result = _fit(value, hint)
    if result is _MISFIT:
        close = ""
        literals = [a for a in _flat(hint) if isinstance(a, str)]
        if isinstance(value, str):
            close = nearest(value, literals)
        raise UsageError(f"{head}: option '{option}' takes {type_name(hint)}, not {value!r}{close}")
    return result


_MISFIT = object()


def _flat(hint: Any) -> Sequence[Any]:
    args = typing.get_args(hint)
    return [x for a in args for x in ([a] if not typing.get_args(a) else _flat(a))]


def _fit(value: Any, hint: Any) -> Any:
    """`value` as the option's type, or _MISFIT: 1 is a number, [1, 2] a tuple, True no integer."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        fits = [f for f in (_fit(value, a) for a in args) if f is not _MISFIT]
        return fits[0] if fits else _MISFIT
    if origin is typing.Literal:
        return value if any(value == a and type(value) is type(a) for a in args) else _MISFIT
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return _MISFIT
        kinds = [args[0]] * len(value) if args[1:] == (...,) else list(args)
        if len(kinds) != len(value):
            return _MISFIT
        fitted = tuple(_fit(v, k) for v, k in zip(value, kinds, strict=True))
        return _MISFIT if any(f is _MISFIT for f in fitted) else fitted
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        return _MISFIT
    if hint in (None, type(None)):
        return None if value is None else _MISFIT
    if hint is Any:
        return value
    return value if isinstance(hint, type) and isinstance(value, hint) else _MISFIT
