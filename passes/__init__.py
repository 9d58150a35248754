"""The built-in passes. They use only graphopt's public API, as a pass of your own would."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.passes.clean import Clean as Clean
    from graphopt.passes.codebook import Codebook as Codebook
    from graphopt.passes.depth import Depth as Depth
    from graphopt.passes.distill import Distill as Distill
    from graphopt.passes.fold import Fold as Fold
    from graphopt.passes.fp16 import Fp16 as Fp16
    from graphopt.passes.fuse import Fuse as Fuse
    from graphopt.passes.half import Half as Half
    from graphopt.passes.int8 import Int8 as Int8
    from graphopt.passes.kv_cache import KvCache as KvCache
    from graphopt.passes.prune import Prune as Prune
    from graphopt.passes.sparsify import Sparsify as Sparsify
    from graphopt.passes.svd import Svd as Svd
    from graphopt.passes.trees import Trees as Trees
    from graphopt.passes.weight_only import WeightOnly as WeightOnly

_WHERE = {
    "Clean": "clean",
    "Codebook": "codebook",
    "Depth": "depth",
    "Distill": "distill",
    "Fold": "fold",
    "Fp16": "fp16",
    "Fuse": "fuse",
    "Half": "half",
    "Int8": "int8",
    "KvCache": "kv_cache",
    "Prune": "prune",
    "Sparsify": "sparsify",
    "Svd": "svd",
    "Trees": "trees",
    "WeightOnly": "weight_only",
}

__all__ = [
    "Clean",
    "Codebook",
    "Depth",
    "Distill",
    "Fold",
    "Fp16",
    "Fuse",
    "Half",
    "Int8",
    "KvCache",
    "Prune",
    "Sparsify",
    "Svd",
    "Trees",
    "WeightOnly",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'graphopt.passes' has no attribute '{name}'")
    return getattr(import_module(f"graphopt.passes.{_WHERE[name]}"), name)
