"""Training: the loop behind distillation and quantization-aware training."""
