"""Key-value cache quantization: what a decoder keeps between tokens, in 8 bits."""

from graphopt.passes.kv_cache.kv_cache import KvCache

__all__ = ["KvCache"]
