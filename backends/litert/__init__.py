"""LiteRT: a direct writer of `.tflite` flatbuffers, channels last, in float and in integers."""

from graphopt.backends.litert.backend import BACKEND as BACKEND

__all__ = ["BACKEND"]
