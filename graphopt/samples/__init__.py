"""Samples: input data for calibration and checking, streamed and re-iterable."""

from graphopt.samples.opening import SampleSource, open_samples
from graphopt.samples.plausible import plausible
from graphopt.samples.stand_ins import many, of_unknown_scale, stand_ins
from graphopt.samples.stream import Feeds, Samples
from graphopt.samples.synthetic import synthetic

__all__ = [
    "Feeds",
    "SampleSource",
    "Samples",
    "many",
    "of_unknown_scale",
    "open_samples",
    "plausible",
    "stand_ins",
    "synthetic",
]
