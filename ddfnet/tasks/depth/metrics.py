"""Root mean square error of depth, in centimeters as in the paper's table 7, beside baselines without training."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.tasks.depth.baselines import BASELINES
from ddfnet.tasks.depth.data import denormalize_guidance

Record = dict[str, tuple[float, int]]
"""One image: method -> sum of squared errors (square meters) and number of valid pixels. "" is the network."""


class DepthEvaluator:
    """Errors over the valid pixels of whole images.

    `rmse` is that of table 7 (RMSE x 1e-2 m): the mean, over the images, of each image's RMSE. The paper follows
    PAC-Net's protocol, whose published code computes this. `rmse_pixels` is the RMSE over all valid pixels of the set,
    in which images with large errors weigh more. Both in centimeters.

    Sums are float64 and kept for each image: the result does not depend on which process evaluates which image.

    Args:
        factor: of the upsampling.
        baselines: image -> record of the methods without training. They do not change between evaluations, so whoever
            keeps this dictionary pays for them once. None: they are left out.
    """

    def __init__(self, *, factor: int, baselines: dict[int, Record] | None = None) -> None:
        self.factor, self.baselines = factor, baselines
        self._sums: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Adds one batch of `DepthReader.read_eval`, on the device."""
        sums, counts = _squared_errors(model(batch["low"], batch["guidance"]), batch)
        self._sums.append((batch["index"].clone(), sums, counts))  # a loader's own tensor is an open file
        if self.baselines is not None and any(i not in self.baselines for i in batch["index"].tolist()):
            self._add_baselines(batch)

    def _add_baselines(self, batch: dict[str, Any]) -> None:
        low, guidance = batch["low"].float(), denormalize_guidance(batch["guidance"])
        records: list[Record] = [{} for _ in batch["index"]]
        for name, upsample in BASELINES.items():
            sums, counts = _squared_errors(upsample(low, guidance, self.factor), batch)
            for record, total, count in zip(records, sums.tolist(), counts.tolist(), strict=True):
                record[name] = (total, count)
        self.baselines.update(zip(batch["index"].tolist(), records, strict=True))

    def state(self) -> list[tuple[int, Record]]:
        """(image, record) of this process's images."""
        known = self.baselines or {}
        return [
            (i, {"": (total, count), **known.get(i, {})})
            for index, sums, counts in self._sums
            for i, total, count in zip(index.tolist(), sums.tolist(), counts.tolist(), strict=True)
        ]

    def compute(self, states: Sequence[list[tuple[int, Record]]]) -> dict[str, float]:
        """`rmse`, `rmse_pixels`, `n` (images), and `rmse_<method>` of the others, which count like `rmse`.

        Images without a valid pixel are counted in `n` and in nothing else; with no valid pixel at all, NaN.
        """
        records = [record for state in states for _, record in state]
        metrics = {}
        for name in records[0] if records else ("",):
            known = [record[name] for record in records if record[name][1]]
            # fsum rounds once: the order of the images, and so the number of processes, changes nothing.
            errors = math.fsum(100 * math.sqrt(total / count) for total, count in known)
            metrics[f"rmse_{name}" if name else "rmse"] = errors / len(known) if known else math.nan
            if not name:
                pixels = sum(count for _, count in known)
                mean = math.fsum(total for total, _ in known) / pixels if pixels else math.nan
                metrics["rmse_pixels"] = 100 * math.sqrt(mean)
        return {**metrics, "n": len(records)}


def _squared_errors(prediction: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of each image: sum of squared errors over its valid pixels (float64), and their number."""
    depth, valid = batch["depth"], batch["valid"]
    if prediction.device.type == "mps":  # Metal has no float64
        prediction, depth, valid = prediction.cpu(), depth.cpu(), valid.cpu()
    errors = (prediction.double() - depth.double()).square()
    # `where`, not a product: what is not valid may be anything, NaN too.
    return errors.where(valid, 0.0).sum((1, 2, 3)), valid.sum((1, 2, 3))
