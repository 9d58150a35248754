"""Tracing: PyTorch modules become models, through `torch.export` and PyTorch's ONNX exporter.

    model = graphopt.trace(module, (images,), dynamic_shapes={"x": {0: "batch"}})

- inputs are named as `forward` names them, outputs by their keys (`output` for a single one);
- parameters and buffers keep their names and layout, so that they fit the module's `state_dict`;
- nodes are named by module path and operator (`encoder.layers.0.attention/MatMul`), which is where
  reports and provenance name them;
- what the module computes is compared with what the model computes, on the example inputs and,
  where axes are dynamic, on other sizes.
"""

from graphopt.tracing.opening import EXTRA, build_model, load_program
from graphopt.tracing.torch_side import quiet
from graphopt.tracing.trace import trace

__all__ = ["EXTRA", "build_model", "load_program", "quiet", "trace"]
