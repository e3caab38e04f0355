"""Joint depth upsampling (paper, section 6, table 7)."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ddfnet
from ddfnet.data.loader import worker_count
from ddfnet.tasks.base import Batch, step_indices, train_sampler
from ddfnet.tasks.depth.config import DepthConfig
from ddfnet.tasks.depth.data import (
    RGB_MEAN,
    RGB_STD,
    DepthEvalBatches,
    DepthEvalReader,
    DepthTrainReader,
    depth_train_batches,
)
from ddfnet.tasks.depth.metrics import DepthEvaluator, Record
from ddfnet.tasks.depth.network import DDFUpNet, depth_range, sampling_phase
from ddfnet.tasks.depth.pairs import DepthPairs, FolderPairs, NYUPairs
from ddfnet.tasks.evaluation import stored_evaluation
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import ConfigError


class DepthTask:
    """Trains DDF-Up-Net on images with measured depth, and evaluates it on whole images.

    Training data are indexed when they are first asked for, so that an evaluation needs the validation set alone.

    Raises:
        DataError: the data are missing, incomplete, or of another kind than `data.format` (validation data: at
            construction).
    """

    config_class = DepthConfig
    best_metric, lower_is_better, fixed_input_size = "rmse", True, True
    evaluation = classmethod(stored_evaluation)

    def __init__(self, config: DepthConfig) -> None:
        self.config = config
        self.phase = sampling_phase(config.data.factor)
        self._val = self.pairs("val")
        self.val_images = len(self._val)
        self._baselines: dict[int, Record] | None = {} if config.data.baselines else None

    @property
    def train_images(self) -> int:
        return len(self._train)

    def build_model(self) -> nn.Module:
        model = self.config.model
        try:
            return DDFUpNet(self.config.data.factor, channels=model.channels, kernel_size=model.kernel_size)
        except ValueError as error:
            raise ConfigError(
                f"model.channels={model.channels}, model.kernel_size={model.kernel_size}: {error}"
            ) from None

    def train_batches(self, plan: RunPlan, *, rank: int, start_step: int, device: torch.device) -> Iterator[Batch]:
        config, data = self.config, self.config.data
        reader = DepthTrainReader(
            self._train,
            factor=data.factor,
            phase=self.phase,
            crop=data.crop,
            border=data.border,
            hflip=config.augment.hflip,
            seed=config.run.seed,
        )
        sampler = train_sampler(config, plan, self.train_images, rank=rank, start_step=start_step)
        return depth_train_batches(
            reader,
            sampler,
            device=device,
            num_workers=worker_count(data.workers),
            channels_last=config.train.channels_last,
        )

    def eval_batches(self, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        config, data = self.config, self.config.data
        return DepthEvalBatches(
            DepthEvalReader(self._val, factor=data.factor, phase=self.phase, border=data.border),
            batch_size=config.eval.batch_size or config.train.device_batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
            num_workers=worker_count(data.workers),
            channels_last=config.train.channels_last,
        )

    def batch_images(self, batch: Batch) -> int:
        return len(batch["low"])

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

    def evaluator(self, device: torch.device) -> DepthEvaluator:
        return DepthEvaluator(factor=self.config.data.factor, baselines=self._baselines)

    def meta(self) -> dict[str, Any]:
        """Network and conventions: all that is needed to use the weights. `DDFUpNet(**meta["model"]["kwargs"])`."""
        model, data = self.config.model, self.config.data
        return {
            "task": "depth",
            "model": {
                "name": model.name,
                "kwargs": {"factor": data.factor, "channels": model.channels, "kernel_size": model.kernel_size},
            },
            "preprocessing": {"mean": list(RGB_MEAN), "std": list(RGB_STD), "phase": self.phase, "border": data.border},
            "ddfnet": ddfnet.__version__,
        }

    def sample_names(self, plan: RunPlan, step: int) -> list[str]:
        """Names of the pairs of one optimizer step, in the order of the global batch."""
        return [self._train.name(i) for i in step_indices(self.config, plan, self.train_images, step)]

    @cached_property
    def _train(self) -> DepthPairs:
        return self.pairs("train")

    def pairs(self, split: str) -> DepthPairs:
        """The pairs of `train` or `val`."""
        data = self.config.data
        if data.format == "nyu":
            return NYUPairs(data.root, split)
        return FolderPairs(Path(data.root) / split, depth_scale=data.depth_scale)


TASK = DepthTask
