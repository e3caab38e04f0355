"""Results image by image: what a report needs beyond the sums of `ClassificationEvaluator`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.evaluation.metrics import score


@dataclass(frozen=True)
class Predictions:
    """One row per image, in the order of the index; all on the CPU."""

    target: Tensor  # label (N,), int64
    top: Tensor  # labels of the five highest logits, best first (N, 5), int64; fewer columns for fewer classes
    confidence: Tensor  # softmax probability of `top[:, 0]` (N,), float64
    loss: Tensor  # cross-entropy (N,), float64
    hits: Tensor  # whether `top` is an accepted label (N, 5), bool
    probabilities: Tensor  # softmax of `top` (N, 5), float32

    def __len__(self) -> int:
        return len(self.target)

    @property
    def predicted(self) -> Tensor:
        """Most probable label (N,)."""
        return self.top[:, 0]

    @property
    def correct(self) -> Tensor:
        """Whether the most probable label is accepted (N,), bool."""
        return self.hits[:, 0]

    @property
    def correct5(self) -> Tensor:
        """Whether one of the five most probable labels is accepted (N,), bool."""
        return self.hits.any(1)


class PredictionEvaluator:
    """Keeps a few numbers of each image, on the device and without host syncs; `predictions` has them after `compute`.

    The logits themselves are not kept: a row takes 84 bytes whatever the number of classes.

    Args:
        columns: score these outputs of the network alone; label i of the images is output `columns[i]`. None: all.
        mirror: average the softmax over the image and its mirror image.
        accepted: labels that count as correct, (N, most) int64 by image index, filled up with -1. None: the target.
    """

    def __init__(
        self, *, columns: Sequence[int] | None = None, mirror: bool = False, accepted: Tensor | None = None
    ) -> None:
        self.columns = None if columns is None else torch.tensor(columns)
        self.mirror, self.accepted = mirror, accepted
        self.batches: list[tuple[Tensor, ...]] = []
        self.predictions: Predictions

    @torch.no_grad()
    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Adds one batch: `image` (B, 3, H, W), `target` (B,), and on the CPU `index` (B,), all labels int64."""
        logits = self._logits(model, batch["image"])
        if self.mirror:
            mirrored = self._logits(model, batch["image"].flip(-1))
            # The logarithm of the mean of the two softmaxes, without leaving the logarithms.
            logits = torch.logaddexp(logits.log_softmax(1), mirrored.log_softmax(1)) - math.log(2)
        top, losses = score(logits, batch["target"])
        probabilities = logits.softmax(1).gather(1, top)
        self.batches.append((batch["index"], batch["target"], top, probabilities, losses))

    def state(self) -> tuple[Tensor, ...]:
        """Index, target, top-5, their softmax and loss of the images of this process, on the CPU; () if it had none."""
        return tuple(torch.cat([part.cpu() for part in column]) for column in zip(*self.batches, strict=True))

    def compute(self, states: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
        """`top1`, `top5` in percent, mean `loss`, and `n`, the images counted, over the states of all processes."""
        columns = zip(*(state for state in states if state), strict=True)
        index, target, top, probabilities, loss = (torch.cat(column) for column in columns)
        index, order = index.sort()
        if (index[1:] == index[:-1]).any():
            raise RuntimeError("an image was evaluated twice: its processes do not divide the set")
        target, top = target[order], top[order]
        accepted = target[:, None] if self.accepted is None else self.accepted[index]
        hits = (top[:, :, None] == accepted[:, None, :]).any(2)
        probabilities = probabilities[order]
        confidence = probabilities[:, 0].double()
        rows = self.predictions = Predictions(target, top, confidence, loss[order].double(), hits, probabilities)
        n, top1, top5 = len(index), int(rows.correct.sum()), int(rows.correct5.sum())
        return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "loss": rows.loss.mean().item(), "n": n}

    def _logits(self, model: nn.Module, image: Tensor) -> Tensor:
        logits = model(image).float()
        if self.columns is None:
            return logits
        self.columns = self.columns.to(logits.device)  # copied with the first batch alone
        return logits[:, self.columns]
