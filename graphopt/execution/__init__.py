"""Execution: running a model to see values or gradients."""
