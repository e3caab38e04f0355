"""Images, histograms and figures by group of parameters that the trackers of a run get, besides its log.

All of it is computed outside the training step but for the norms of the gradients, draws no random number, and
nothing at all where there is no tracker.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddfnet.engine.evaluate import autocast
from ddfnet.engine.trackers import Trackers
from ddfnet.layers.inspection import batch_filters, spatial_layers
from ddfnet.pages.contact_sheet import contact_sheet
from ddfnet.tasks import Config, Task
from ddfnet.tasks.base import Evaluator
from ddfnet.tasks.plan import RunPlan

MOST_IMAGES = 16  # of the training batch, and of the mistakes
FILTER_IMAGES = 8
_MOST_LAYERS, _MOST_VALUES = 8, 100_000
_STAGE = re.compile(r"^(.*?(?:layer|stages?|blocks?|features?|groups?)[._]?\d+)(?:\.|$)")


class TrackerPages:
    """What the trainer shows of a run.

    Args:
        trackers: get the pages; none in processes that keep no log.
        task: knows what is in a batch.
        config, plan: when a step is logged.
        device: of the batches.
    """

    def __init__(self, trackers: Trackers, task: Task, config: Config, plan: RunPlan, device: torch.device) -> None:
        self.trackers, self.task, self.config, self.plan, self.device = trackers, task, config, plan, device
        self._training: list[tuple[Tensor, str]] | None = None
        self._norms: dict[str, Tensor] = {}
        self._filter_batch: Any = None
        self._mistakes: dict[str, Any] | None = None

    def see_batch(self, batch: dict[str, Any]) -> None:
        """Keeps images of the first training batch of this start."""
        if self._training is None and self.trackers.active:
            self._training = [(image.clone(), text) for image, text in self.task.shown(batch, MOST_IMAGES)]

    def see_gradients(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Norms of the gradients before clipping, of a step after which there is a log line; on the device."""
        is_logged = step % self.config.run.log_every == 0 or step % self.plan.steps_per_epoch == 0
        if not (is_logged or step == self.plan.total_steps) or not self.trackers.active:
            return
        for name, group in _named_groups(optimizer):
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if gradients:
                self._norms[name] = nn.utils.get_total_norm(gradients)

    def log_step(self, optimizer: torch.optim.Optimizer, step: int, epoch: float) -> None:
        """Learning rate and gradient norm of each group of parameters; the first training batch, once."""
        if not self.trackers.active:
            return
        rates = {f"lr/{name}": group["lr"] for name, group in _named_groups(optimizer)}
        norms = {f"grad_norm/{name}": float(norm) for name, norm in self._norms.items()}
        self.trackers.scalars("groups", {**rates, **norms}, step, epoch)
        if self._training:
            self.trackers.image("train/first_batch", contact_sheet(self._training), step)
            self._training = []

    @contextmanager
    def watched(self, evaluator: Evaluator, model: nn.Module) -> Iterator[Evaluator]:
        """An evaluator that gives the same metrics, during which the worst mistakes of this process are kept."""
        if not self.trackers.active:
            yield evaluator
            return
        outputs: list[Any] = []
        self._mistakes = None
        handle = model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            yield _Watched(evaluator, outputs, self._see_output)
        finally:
            handle.remove()

    def log_evaluation(self, name: str, model: nn.Module, step: int) -> None:
        """The worst mistakes of the evaluation, and the filters of the network for some validation images."""
        if not self.trackers.active:
            return
        if self._mistakes is not None:
            wrong = {key: value[self._mistakes["score"] > 0] for key, value in self._mistakes.items()}
            if shown := self.task.shown(wrong, MOST_IMAGES):
                self.trackers.image(f"{name}/mistakes", contact_sheet(shown), step)
        if self._filter_batch is not None:
            for layer, filters in self._filters(model).items():
                for kind, values in filters.items():
                    self.trackers.histogram(f"filters_{name}/{layer}/{kind}", _thinned(values), step)

    def _see_output(self, output: Any, batch: dict[str, Any]) -> None:
        if self._filter_batch is None and isinstance(batch.get("image"), Tensor):
            self._filter_batch = batch["image"][:FILTER_IMAGES].clone()
        rows = self.task.mistakes(output, batch)
        if rows is None:
            return
        # Kept by their ranks on the device: asking whether there is a mistake would make the host wait.
        rows = _worst(rows)
        former = self._mistakes
        together = rows if former is None else {key: torch.cat([former[key], rows[key]]) for key in rows}
        self._mistakes = _worst(together)

    def _filters(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        names = first_of_stages(list(spatial_layers(model)))
        if not names:
            return {}
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with autocast(self.device, self.config.train.precision):
            filters = batch_filters(model, lambda: model(self._filter_batch), names)
        for module, training in modes:
            module.training = training
        return filters


class _Watched:
    def __init__(self, evaluator: Evaluator, outputs: list[Any], see: Any) -> None:
        self._evaluator, self._outputs, self._see = evaluator, outputs, see
        self.state, self.compute = evaluator.state, evaluator.compute

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        self._outputs.clear()
        self._evaluator.update(model, batch)
        if self._outputs:
            self._see(self._outputs[-1], batch)
        self._outputs.clear()


def first_of_stages(names: list[str]) -> list[str]:
    """Of names of layers, in their order, the first of each stage: of `layer2.0.conv2` that is `layer2`."""
    first: dict[str, str] = {}
    for name in names:
        match = _STAGE.match(name)
        first.setdefault(match[1] if match else name.split(".")[0], name)
    return list(first.values())[:_MOST_LAYERS]


def _worst(rows: dict[str, Any]) -> dict[str, Any]:
    chosen = rows["score"].topk(min(MOST_IMAGES, len(rows["score"]))).indices
    return {key: value[chosen] for key, value in rows.items()}


def _named_groups(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, group in enumerate(optimizer.param_groups):
        scale = group.get("lr_scale", 1.0)
        decay = "decay" if group.get("weight_decay") else "no_decay"
        yield f"{i}_{decay}" + (f"_x{scale:g}" if scale != 1 else ""), group


def _thinned(values: Tensor) -> np.ndarray:
    """At most `_MOST_VALUES` of them, evenly: a histogram needs no more."""
    return values[:: 1 + len(values) // _MOST_VALUES].numpy()
