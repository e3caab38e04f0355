"""Evaluation over all processes, each image once."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ddfnet.engine.distributed import Distributed
from ddfnet.tasks.base import Evaluator
from ddfnet.utils.errors import raised_on_one_process


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    evaluator: Evaluator,
    *,
    distributed: Distributed,
    autocast: AbstractContextManager,
    expected: int | None = None,
) -> dict[str, float]:
    """Runs a model over this process's share of the batches and returns the metrics of the whole set.

    Args:
        model: set to eval mode here, and back to its former mode at the end.
        batches: this process's share; nothing padded, nothing dropped.
        evaluator: of the task.
        autocast: the precision of the forward pass.
        expected: size of the whole set; a different count raises RuntimeError.
    """
    was_training = model.training
    model.eval()
    with autocast, raised_on_one_process():
        for batch in batches:
            evaluator.update(model, batch)
    model.train(was_training)
    metrics = evaluator.compute(distributed.gather_objects(evaluator.state()))
    if expected is not None and metrics["n"] != expected:
        raise RuntimeError(f"evaluated {metrics['n']} images of {expected}: some were lost or counted twice")
    return metrics
