"""Scripts of the frameworks: `convert(path, onnx_path)` writes ONNX, returns what runs the source.

A script may run in an interpreter that has no graphopt: it imports nothing of it. What it returns
takes a dict of arrays by the converted model's input names and gives the outputs in order; None
where the framework is not asked.
"""
