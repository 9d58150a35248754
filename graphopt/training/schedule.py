"""How to train, and what came of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = ["Plan", "TrainReport"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        epochs: passes over the data.
        lr: highest learning rate of AdamW, reached after the warm-up.
        decay: weight decay of matrices (vectors have none).
        warmup: share of all steps during which the rate rises; then it falls as a cosine, to 0.
        patience: epochs without a better held-out loss before training stops.
        checkpoint: where to keep what is needed to go on after an interruption, or None.
        key: says which training this is: a checkpoint of another one is not continued.
        every: seconds between checkpoints.
        text: what progress and tracked figures call this.
    """

    epochs: int = 3
    lr: float = 5e-4
    decay: float = 0.0
    warmup: float = 0.1
    patience: int = 3
    checkpoint: Path | None = None
    key: str = ""
    every: float = 30.0
    text: str = "distill"


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """What training did.

    Attributes:
        epochs: epochs run.
        steps: steps taken.
        before, after: held-out loss of the weights given and of those kept (the best seen).
        stopped: why it ended.
        seconds: time taken, that of interrupted runs included.
        history: held-out loss after each epoch.
    """

    epochs: int
    steps: int
    before: float
    after: float
    stopped: str
    seconds: float
    history: tuple[float, ...]

    @property
    def improved(self) -> bool:
        """Whether the weights kept are better than those given."""
        return self.after < self.before

    def __str__(self) -> str:
        change = f"held-out loss {self.before:.4g} -> {self.after:.4g}"
        if not self.improved:
            change = f"held-out loss {self.before:.4g} did not fall: the weights stay as they were"
        plural = "" if self.epochs == 1 else "s"
        return f"{self.epochs} epoch{plural}, {change}, {self.stopped}, {self.seconds:.0f} s"
