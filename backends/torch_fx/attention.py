"""Attention by its definition: the standard operator, and those of ONNX Runtime.

    softmax(cap(s Q K^T) + mask) V        Q: [b, h, s, d]  K: [b, g, t, d]  V: [b, g, t, e]

Query heads share key heads in runs of h / g. Masks are added: 0 where a key may be seen, and the
value of the operator's definition where it may not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphopt.backends.torch_fx.types import torch_dtype

from graphopt.errors import ModelError

__all__ = ["TABLE", "attend", "causal_mask", "packed_attention"]

_LOWEST = float("-inf")


def split_heads(x: Any, heads: int) -> Any:
    """[b, s, h d] -> [b, h, s, d]"""
    return x.reshape(x.size(0), x.size(1), heads, -1).transpose(1, 2)


def merge_heads(x: Any) -> Any:
    """[b, h, s, d] -> [b, s, h d]"""
    return x.transpose(1, 2).flatten(2)


def causal_mask(rows: Any, columns: Any, first: Any, like: Any, hidden: float) -> Any:
    """[s, t]: query i sees keys up to first + i."""
    i = torch.arange(rows, device=like.device).reshape(-1, 1)
    j = torch.arange(columns, device=like.device)
    zero = torch.zeros((rows, columns), dtype=like.dtype, device=like.device)
    return torch.where(j <= i + first, zero, torch.full_like(zero, hidden))


def attend(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    scale: float | None,
    cap: float = 0.0,
    group: int = 1,
    guarded: bool = False,
) -> tuple[Any, Any, Any, Any]:
    """The result and the scores: as products, with the mask, after softmax."""
    if group > 1:
        k = torch.repeat_interleave(k, group, 1)
        v = torch.repeat_interleave(v, group, 1)
    if scale is None:
        product = torch.matmul(q, k.transpose(-1, -2)) * (q.size(-1) ** -0.5)
    else:
        product = torch.matmul(q, k.transpose(-1, -2)) * scale
    capped = torch.tanh(product / cap) * cap if cap else product
    masked = capped if mask is None else capped + mask
    if not guarded:
        weights = torch.softmax(masked, -1)
    else:  # a query that sees no key gives 0
        blind = torch.amax(masked, -1, True) == _LOWEST
        weights = torch.softmax(torch.where(blind, torch.zeros_like(masked), masked), -1)
        weights = torch.where(blind, torch.zeros_like(weights), weights)
    return torch.matmul(weights, v), product, masked, weights


def _additive(op: Any, mask: Any, k: int, like: Any) -> Any:
    """A mask as numbers to add: True means seen."""
    if torch_dtype(op.dtype(k)) is not torch.bool:
        return mask
    zero = torch.zeros_like(mask, dtype=like.dtype)
    return torch.where(mask, zero, torch.full_like(zero, _LOWEST))


def _attention(
    op: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    past_k: Any = None,
    past_v: Any = None,
    lengths: Any = None,
) -> Any:
    flat = op.rank(0) == 3
    heads = op.attribute("q_num_heads") if flat else (op.dims(0) or [0, None])[1]
    shared = op.attribute("kv_num_heads") if flat else (op.dims(1) or [0, None])[1]
    if flat:
        q, k, v = split_heads(q, heads), split_heads(k, shared), split_heads(v, shared)
    first: Any = 0
    if past_k is not None:
        first = past_k.size(2)
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    added = None if mask is None else _additive(op, mask, 3, q)
    if added is not None:  # a mask may be shorter than the keys: what is missing is hidden
        added = op.call(lengthened, added, k.size(2))
    if lengths is not None:
        first = lengths.reshape(-1, 1, 1, 1) - q.size(2) if op.attribute("is_causal", 0) else first
        hidden = op.call(length_mask, lengths, k.size(2), q, _LOWEST)
        added = hidden if added is None else added + hidden
    if op.attribute("is_causal", 0):
        hidden = op.call(causal_mask, q.size(2), k.size(2), first, q, _LOWEST)
        added = hidden if added is None else added + hidden
    group = heads // shared if heads and shared else 1
    guarded = mask is not None or lengths is not None
    cap = op.attribute("softcap", 0.0)
    y, product, masked, weights = attend(q, k, v, added, op.attribute("scale"), cap, group, guarded)
    mode = op.attribute("qk_matmul_output_mode", 0)
    if op.wanted(3) and mode in (1, 2) and cap:
        raise ModelError(
            f"Attention '{op.node.name}': scores before or after a cap are not lowered"
        )
    shown = {0: product, 3: weights}.get(mode, masked)
    return (merge_heads(y) if flat else y), k, v, shown


def lengthened(mask: Any, length: int) -> Any:
    """A mask whose last axis is `length`; what is missing is hidden."""
    missing = length - mask.size(-1)
    if missing <= 0 or mask.size(-1) == 1:
        return mask
    return torch.nn.functional.pad(mask, [0, missing], "constant", _LOWEST)


def length_mask(lengths: Any, columns: int, like: Any, hidden: float) -> Any:
    """[b, 1, 1, t]: keys from `lengths` on are hidden."""
    seen = torch.arange(columns, device=like.device) < lengths.reshape(-1, 1, 1, 1)
    zero = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return torch.where(seen, zero, torch.full_like(zero, hidden))


def _key_mask(op: Any, k: int, mask: Any, rows: Any, columns: Any, like: Any) -> Any:
    """A key mask of ONNX Runtime's operators, added: lengths, [b, t] or [b, s, t] of 0 and 1."""
    hidden = op.attribute("mask_filter_value", -10000.0)
    rank = op.rank(k)
    if rank == 1:
        return op.call(length_mask, mask, columns, like, hidden)
    if rank == 2:
        mask = mask.reshape(mask.size(0), 1, 1, mask.size(1))
    elif rank == 3:
        mask = mask.unsqueeze(1)
    zero = torch.zeros_like(mask, dtype=like.dtype)
    return torch.where(mask > 0, zero, torch.full_like(zero, hidden))


def _sum(*terms: Any) -> Any:
    given = [t for t in terms if t is not None]
    total = given[0] if given else None
    for term in given[1:]:
        total = total + term
    return total


def _multi_head(
    op: Any,
    q: Any,
    k: Any = None,
    v: Any = None,
    bias: Any = None,
    key_mask: Any = None,
    added: Any = None,
    past_k: Any = None,
    past_v: Any = None,
    *more: Any,
) -> Any:
    if more:
        raise ModelError(
            f"MultiHeadAttention '{op.node.name}' writes into a shared cache, which is not lowered"
        )
    heads = op.attribute("num_heads")
    if k is None:  # [b, s, h, 3, d]
        q, k, v = (q.select(3, n).transpose(1, 2) for n in range(3))
    else:
        wide = (op.dims(0) or [None])[-1]
        if bias is not None:
            bq, bk, bv = _bias_parts(op, bias, wide)
            q = q + bq
            k = k + bk if op.rank(1) == 3 else k
            v = v + bv if v is not None and op.rank(2) == 3 else v
        q = split_heads(q, heads)
        if v is None:  # [b, t, h, 2, d]
            k, v = (k.select(3, n).transpose(1, 2) for n in range(2))
        else:
            k = split_heads(k, heads) if op.rank(1) == 3 else k
            v = split_heads(v, heads) if op.rank(2) == 3 else v
    first: Any = 0
    if past_k is not None:
        first = past_k.size(2)
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    hidden = None
    if op.attribute("unidirectional", 0):
        hidden = op.call(causal_mask, q.size(2), k.size(2), first, q, _LOWEST)
    keys = None
    if key_mask is not None:
        keys = _key_mask(op, 4, key_mask, q.size(2), k.size(2), q)
    scale = op.attribute("scale") or None
    y, product, _, _ = attend(q, k, v, _sum(added, keys, hidden), scale)
    return merge_heads(y), k, v, product


def _bias_parts(op: Any, bias: Any, wide: int | None) -> tuple[Any, Any, Any]:
    if wide is None:
        raise ModelError(f"the width of MultiHeadAttention '{op.node.name}' is not known")
    total = (op.dims(3) or [None])[0]
    rest = (total or 3 * wide) - 2 * wide
    return bias.narrow(0, 0, wide), bias.narrow(0, wide, wide), bias.narrow(0, 2 * wide, rest)


def packed_attention(
    op: Any, qkv: Any, mask: Any, past: Any, added: Any, widths: list[int], mask_at: int
) -> Any:
    """`com.microsoft:Attention` after its projection: [b, s, q k v]."""
    heads = op.attribute("num_heads")
    q, k, v = (split_heads(qkv.narrow(-1, sum(widths[:n]), widths[n]), heads) for n in range(3))
    first: Any = 0
    if past is not None:
        first = past.size(3)
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    present = torch.stack([k, v], 0) if op.wanted(1) else None
    keys = None
    if mask is not None:
        keys = _key_mask(op, mask_at, mask, q.size(2), k.size(2), q)
    hidden = None
    if op.attribute("unidirectional", 0):
        hidden = op.call(causal_mask, q.size(2), k.size(2), first, q, _LOWEST)
    y = attend(q, k, v, _sum(added, keys, hidden), op.attribute("scale") or None)[0]
    return merge_heads(y) if present is None else (merge_heads(y), present)


def _contrib_attention(
    op: Any,
    x: Any,
    w: Any,
    b: Any = None,
    mask: Any = None,
    past: Any = None,
    added: Any = None,
    *more: Any,
) -> Any:
    if more or op.attribute("do_rotary", 0):
        raise ModelError(f"Attention '{op.node.name}': rotary or a shared cache is not lowered")
    total = (op.dims(1) or [None, None])[1]
    if total is None:
        raise ModelError(f"the width of Attention '{op.node.name}' is not known")
    widths = op.attribute("qkv_hidden_sizes") or [total // 3] * 3
    qkv = torch.matmul(x, w)
    return packed_attention(op, qkv if b is None else qkv + b, mask, past, added, widths, 3)


def rotate(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """(x1, x2) -> (x1 cos - x2 sin, x1 sin + x2 cos) on the last axis, of halves or of pairs."""
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _rotary(op: Any, x: Any, cos: Any, sin: Any, positions: Any = None) -> Any:
    """x: [b, h, s, d] or [b, s, h d]"""
    if op.node.domain == "com.microsoft":
        cos, sin, positions = sin, positions, cos
    flat = op.rank() == 3
    whole = x
    if flat:
        heads = op.attribute("num_heads", 0) or 0
        if not heads and op.node.domain == "com.microsoft":
            wide, half = (op.dims(0) or [None])[-1], (op.dims(2) or [None])[-1]
            heads = (wide or 0) // (2 * (half or 1))
        x = split_heads(x, heads)
    if positions is not None:
        if op.node.domain == "com.microsoft" and op.rank(1) == 1:
            steps = op.call(torch.arange, x.size(2), device=op.device)
            positions = positions.reshape(-1, 1) + steps.reshape(1, -1)
        positions = positions.to(torch.int64)
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    part = op.attribute("rotary_embedding_dim", 0) or 0
    interleaved = bool(op.attribute("interleaved", 0))
    if part:
        turned = rotate(x[..., :part], cos, sin, interleaved)
        y = torch.cat([turned, x[..., part:]], -1)
    else:
        y = rotate(x, cos, sin, interleaved)
    return merge_heads(y).reshape(whole.shape) if flat else y


TABLE: dict[str, Callable[..., Any]] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "com.microsoft:Attention": _contrib_attention,
    "com.microsoft:MultiHeadAttention": _multi_head,
    "com.microsoft:RotaryEmbedding": _rotary,
}
