"""EMA weights of a training run."""

import torch
from timm.utils import ModelEmaV3
from torch import nn


class Ema(ModelEmaV3):
    """timm's exponential moving average of weights and buffers; a weight with several names is averaged once a step.

    timm averages it once for each name, with the decay multiplied by itself as often: in CoaT, whose position encodings
    are shared by the blocks of a stage.
    """

    @torch.no_grad()
    def apply_update_(self, model: nn.Module, decay: float) -> None:
        averages, latest = self.module.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
        pairs = {id(average): (average, latest[name]) for name, average in averages.items()}.values()
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floating], [new for _, new in floating], weight=1.0 - decay)
        for average, new in pairs:
            if not average.is_floating_point():
                average.copy_(new)
