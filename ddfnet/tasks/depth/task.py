"""Joint depth upsampling (paper, section 6, table 7)."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import ddfnet
from ddfnet.data.batches import Batch
from ddfnet.data.loader import Finish
from ddfnet.tasks.base import Task
from ddfnet.tasks.depth.config import DepthConfig
from ddfnet.tasks.depth.data import RGB_MEAN, RGB_STD, DepthReader, denormalize_guidance, with_normal_guidance
from ddfnet.tasks.depth.metrics import DepthEvaluator, Record
from ddfnet.tasks.depth.network import DDFUpNet, depth_range, sampling_phase
from ddfnet.tasks.depth.pairs import DepthPairs, open_pairs
from ddfnet.utils.errors import ConfigError


class DepthTask(Task[DepthConfig, DepthPairs]):
    """Trains DDF-Up-Net on images with measured depth, and evaluates it on whole images.

    Training data are indexed when they are first asked for, so that an evaluation needs the validation set alone.
    """

    config_class = DepthConfig
    best_metric, lower_is_better, other_metrics = "rmse", True, (("rmse_pixels", True),)

    def __init__(self, config: DepthConfig) -> None:
        super().__init__(config)
        self._val = open_pairs(config.data, "val")
        self._baselines: dict[int, Record] | None = {} if config.data.baselines else None

    @cached_property
    def _train(self) -> DepthPairs:
        return open_pairs(self.config.data, "train")

    def build_model(self) -> nn.Module:
        model = self.config.model
        try:
            return DDFUpNet(self.config.data.factor, channels=model.channels, kernel_size=model.kernel_size)
        except ValueError as error:
            keys = f"model.channels={model.channels}, model.kernel_size={model.kernel_size}"
            raise ConfigError(f"{keys}: {error}") from None

    def train_reader(self, device: torch.device) -> tuple[Callable, Finish]:
        config = self.config
        reader = DepthReader(self._train, config.data, hflip=config.augment.hflip, seed=config.run.seed)
        return reader.read, self._finish

    def eval_reader(self, device: torch.device) -> tuple[Callable, Finish]:
        return DepthReader(self._val, self.config.data).read_eval, self._finish

    def _finish(self, batch: Batch) -> Batch:
        return with_normal_guidance(batch, channels_last=self.config.train.channels_last)

    def loss(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        """Mean squared error over the valid pixels of one micro-batch, in units of each crop's depth range.

        The paper does not print its loss: this is PAC-Net's, whose protocol it follows. The range is that of the low
        resolution, as in the network. A micro-batch without a valid pixel gives 0.
        """
        _, span = depth_range(batch["low"])
        valid = batch["valid"]
        # `where` before the square: what is not valid may be NaN, whose gradient a later one would let through.
        errors = ((model(batch["low"], batch["guidance"]) - batch["depth"]) / span).where(valid, 0.0)
        return {"loss": errors.square().sum() / valid.sum().clamp(min=1)}

    def shown(self, batch: Batch, most: int) -> list[tuple[Tensor, str]]:
        return [(image, "") for image in denormalize_guidance(batch["guidance"][:most])]

    def evaluator(self, device: torch.device) -> DepthEvaluator:
        return DepthEvaluator(factor=self.config.data.factor, baselines=self._baselines)

    def meta(self) -> dict[str, Any]:
        """Network and conventions: all that is needed to use the weights. `DDFUpNet(**meta["model"]["kwargs"])`."""
        model, data = self.config.model, self.config.data
        kwargs = {"factor": data.factor, "channels": model.channels, "kernel_size": model.kernel_size}
        rgb, phase = {"mean": list(RGB_MEAN), "std": list(RGB_STD)}, sampling_phase(data.factor)
        return {
            "task": "depth",
            "model": {"name": model.name, "kwargs": kwargs},
            "preprocessing": {**rgb, "phase": phase, "border": data.border},
            "ddfnet": ddfnet.__version__,
        }


TASK = DepthTask
