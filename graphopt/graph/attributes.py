"""Node attributes: their values, and the defaults that the ONNX standard gives them."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["default_attribute"]


@cache
def default_attribute(domain: str, op_type: str, name: str) -> Any:
    """The value an attribute has when it is left out, or None."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, domain="" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    return value.decode() if isinstance(value, bytes) else value
