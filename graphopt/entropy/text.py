"""Zstandard: names and attributes of a graph, and bytes by Huffman's code, fast to decode."""

from __future__ import annotations

from typing import Any

from graphopt.errors import MissingExtra, ModelError

__all__ = ["by_frequency", "compressed", "decompressed"]


def _library() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtra("pack", "a packed model") from error
    return zstandard


def compressed(data: bytes, level: int) -> bytes:
    """One frame that knows its size."""
    made: bytes = _library().ZstdCompressor(level=level).compress(data)
    return made


def by_frequency(data: bytes) -> bytes:
    """A frame of Huffman's codes alone: repetitions that chance makes cost more than they save."""
    zstd = _library()
    settings = zstd.ZstdCompressionParameters(
        compression_level=1,
        strategy=zstd.STRATEGY_BTOPT,
        window_log=17,
        hash_log=6,
        chain_log=6,
        search_log=1,
        min_match=7,
        target_length=999,
    )
    made: bytes = zstd.ZstdCompressor(compression_params=settings).compress(data)
    return made


def decompressed(data: bytes | memoryview, size: int) -> bytes:
    """The `size` bytes of a frame. Raises ModelError: it is damaged, or holds another number."""
    zstd = _library()
    try:
        if zstd.frame_content_size(data) != size:
            raise ModelError("a compressed part has another size than it should")
        found: bytes = zstd.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstd.ZstdError as error:
        raise ModelError("a compressed part is damaged") from error
    if len(found) != size:
        raise ModelError("a compressed part has another size than it should")
    return found
