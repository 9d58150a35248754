"""Measuring: how fast a model is: statistics, worker processes, footprint, benchmark."""
