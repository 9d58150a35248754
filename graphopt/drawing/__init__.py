"""Graph drawing: a graph as boxes with coordinates, repeated blocks in boxes of their own."""
