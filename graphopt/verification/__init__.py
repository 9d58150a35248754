"""Verification: is it still right, as a graph, by its outputs, layer by layer."""
