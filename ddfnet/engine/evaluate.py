"""Evaluation over all processes, each image once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from ddfnet.engine.distributed import Distributed
from ddfnet.engine.signals import Interrupted, StopSignal
from ddfnet.engine.watch import Watch
from ddfnet.ops.compile_ahead import compile_ahead
from ddfnet.tasks import Config, Task
from ddfnet.tasks.base import Evaluator
from ddfnet.utils.errors import ConfigError, raised_on_one_process
from ddfnet.utils.progress import ProgressBar

T = TypeVar("T")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of `fp32` (off), `bf16` or `fp16` on a device."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def check_precision(device: torch.device, precision: str) -> None:
    """ConfigError for a training precision that is not supported on a device: nobody has tried scaled losses on mps."""
    if device.type == "mps" and precision == "fp16":
        raise ConfigError("train.precision=fp16 cannot be trained on run.device=mps: use bf16 or fp32")


def place(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Moves a model to a device and its four-dimensional tensors to a memory format, in place; returns it.

    `nn.Module.to` refuses channels_last for a model that has a five-dimensional tensor, too.
    """
    model.to(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
    return model


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    evaluator: Evaluator,
    *,
    distributed: Distributed,
    precision: str,
    expected: int | None = None,
    stop: StopSignal | None = None,
    watch: Watch | None = None,
) -> dict[str, float]:
    """The metrics of a whole set, of which `batches` are those of this process: nothing padded, nothing dropped.

    The model is set to eval mode, and each of its modules back to its former mode at the end.

    Args:
        stop: ends the evaluation between two batches.
        watch: is told of each wait and each batch.

    Raises:
        Interrupted: any process was signalled; raised on all of them.
        RuntimeError: the set has not the `expected` number of images.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    batches = batches if watch is None else _watched(batches, watch)
    with autocast(distributed.device, precision), raised_on_one_process():
        for batch in batches if stop is None else stop.until_stopped(batches):
            evaluator.update(model, batch)
    for module, training in modes:  # frozen batch norms stay in eval mode
        module.training = training
    if stop is not None and stop.any_received():
        raise Interrupted(stop.received or "a signal to another process", agreed=True)
    metrics = evaluator.compute(distributed.gather_objects(evaluator.state()))
    if expected is not None and metrics["n"] != expected:
        raise RuntimeError(f"evaluated {metrics['n']} images of {expected}: some were lost or counted twice")
    return metrics


def _watched(batches: Iterable[T], watch: Watch) -> Iterator[T]:
    """The batches; tells of the wait for each, of its evaluation, and of the wait for the other processes after all."""
    watch.phase("evaluation data")
    for batch in batches:
        watch.phase("evaluation")
        yield batch
        watch.phase("evaluation data")
    watch.phase("evaluation result")


def counted(batches: Iterable[Any], size: int, world_size: int, bar: ProgressBar) -> Iterator[Any]:
    """The batches of one process, with the progress of all on `size` images: they are about equally fast."""
    done = 0
    bar(done, size)
    for batch in batches:
        yield batch
        done = min(size, done + world_size * len(batch["index"]))
        bar(done, size)
    bar.close()


def evaluate_in_training(
    model: nn.Module, batches: Iterable[dict[str, Any]], task: Task, config: Config, distributed: Distributed,
    *, limit: int | None, log: Callable[[str], None], stop: StopSignal | None, watch: Watch,
    watched: Callable[[Evaluator, nn.Module], AbstractContextManager[Evaluator]], bar: ProgressBar,
) -> dict[str, float]:  # fmt: skip
    """`evaluate` of a model that is being trained; `limit`: so many batches alone (dry run);
    `watched`: looks on, see `TrackerPages`; `bar`: shows how far it is."""
    # One that trains compiled is evaluated as it is, with kernels that training had no use for.
    ahead = config.train.compile and task.fixed_input_size
    kernels = compile_ahead(model, log=log) if ahead else nullcontext()
    with kernels, watched(task.evaluator(distributed.device), model) as evaluator:
        return evaluate(
            model,
            counted(batches, task.val_images, distributed.world_size, bar)
            if limit is None
            else (batch for _, batch in zip(range(limit), batches, strict=False)),
            evaluator,
            distributed=distributed,
            precision=config.train.precision,
            expected=task.val_images if limit is None else None,
            stop=stop,
            watch=watch,
        )
