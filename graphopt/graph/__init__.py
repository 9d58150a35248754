"""Graphs: reading and editing one: constants, attributes, building, traversal, provenance."""
