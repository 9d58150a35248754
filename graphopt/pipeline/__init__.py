"""The pipeline: run passes over a model, verify each, keep it or undo it, report."""
