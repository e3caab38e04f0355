"""Exact classification metrics: integer counts and a float64 loss sum, which add up over processes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def score(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The best labels and the loss of each image, of which all figures are made, in training and in `eval.py`.

    Logits (B, classes), float32, and labels (B,) -> the labels of the five highest logits, best first (B, 5), or of all
    classes where they are fewer, and the cross-entropies (B,).
    """
    return logits.topk(min(5, logits.shape[1])).indices, F.cross_entropy(logits, target, reduction="none")


class ClassificationEvaluator:
    """Counts images, top-1 and top-5 hits and sums the cross-entropy, on the device and without host syncs.

    With fewer than five classes top-5 counts every class there is.
    """

    def __init__(self, device: torch.device) -> None:
        where = "cpu" if device.type == "mps" else device  # Metal has no float64
        self.totals = torch.zeros(4, device=where, dtype=torch.float64)  # counts are exact up to 2**53

    @torch.no_grad()
    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Adds one batch: `image` (B, 3, H, W) and integer `target` (B,)."""
        self.update_logits(model(batch["image"]).float(), batch["target"])

    def update_logits(self, logits: Tensor, target: Tensor) -> None:
        """Adds logits (B, classes) and their targets (B,)."""
        top, losses = score(logits, target)
        hits = top == target[:, None]
        counts = torch.stack([hits.new_tensor(len(target), dtype=torch.int64), hits[:, 0].sum(), hits.sum()])
        losses = losses.to(self.totals.device)
        self.totals += torch.cat([counts.to(self.totals), losses.sum(dtype=self.totals.dtype)[None]])

    def state(self) -> Tensor:
        """Images, top-1 hits, top-5 hits and sum of losses of this process: float64 (4,) on the CPU."""
        return self.totals.cpu()

    def compute(self, states: Sequence[Tensor]) -> dict[str, float]:
        """`top1`, `top5` in percent, mean `loss`, and `n`, the images counted, over the states of all processes."""
        n, top1, top5, loss = torch.stack(list(states)).sum(0).tolist()
        return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "loss": loss / n, "n": int(n)}
