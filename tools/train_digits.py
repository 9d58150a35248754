"""Train the network that `graphopt demo` optimizes, on scikit-learn's handwritten digits.

    python tools/train_digits.py

Writes graphopt/data/digits.onnx and digits.npz (256 unlabelled training images for calibration,
450 held-out images with labels). Needs the torch extra and scikit-learn; about 20 s on two cores.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

DATA = Path(__file__).parents[1] / "graphopt" / "data"


class Residual(nn.Module):
    """relu(x + conv-norm(relu(conv-norm(x))))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the body's output to its input."""
        return torch.relu(x + self.body(x))


def network() -> nn.Module:
    """8x8 images in, ten logits out; the images are doubled in size first."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32),
        nn.Conv2d(32, 40, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(40 * 16, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def shifted(x: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to one pixel: the training set is small."""
    moves = torch.randint(-1, 2, (len(x), 2))
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    return torch.stack(
        [padded[i, :, 1 + a : 9 + a, 1 + b : 9 + b] for i, (a, b) in enumerate(moves.tolist())]
    )


def train(x: torch.Tensor, y: torch.Tensor, epochs: int = 40) -> nn.Module:
    """Train with AdamW under a one-cycle learning rate."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // 64 * 64].split(64):
            loss = nn.functional.cross_entropy(model(shifted(x[batch])), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train, export, and write the data beside the model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    x, held_x, y, held_y = train_test_split(
        images, digits.target, test_size=450, random_state=0, stratify=digits.target
    )
    model = train(torch.from_numpy(x), torch.from_numpy(y))
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        buffer,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        optimize=False,
        external_data=False,
    )
    exported = ir.from_proto(onnx.load_from_string(buffer.getvalue()))
    onnxscript.optimizer.fold_constants(exported)
    RemoveUnusedNodesPass()(exported)
    proto = ir.to_proto(exported)
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    DATA.mkdir(exist_ok=True)
    onnx.save(proto, DATA / "digits.onnx")
    np.savez_compressed(
        DATA / "digits.npz",
        calibration=(x[:256] * 16).astype(np.uint8),
        images=(held_x * 16).astype(np.uint8),
        labels=held_y.astype(np.uint8),
    )
    with torch.no_grad():
        right = (model(torch.from_numpy(held_x)).argmax(1).numpy() == held_y).mean()
    size = (DATA / "digits.onnx").stat().st_size
    print(f"accuracy {right:.4f} on {len(held_y)} held-out images, {size:,} bytes")


if __name__ == "__main__":
    main()
