"""Fp16: half precision where the target has it and the values fit, float islands elsewhere."""

from graphopt.passes.fp16.fp16 import Fp16

__all__ = ["Fp16"]
