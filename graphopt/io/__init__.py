"""ONNX bytes in and out: mapped reading, streamed writing, tensors, digests."""
