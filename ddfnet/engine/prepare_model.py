"""A task's model made ready to train: on its device, with what is frozen, checkpointed or synchronized."""

from collections.abc import Callable

from torch import nn

from ddfnet.engine.batch_norm import synchronize_batch_norm
from ddfnet.engine.batch_of_one import check_batch_of_one
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.evaluate import place
from ddfnet.engine.freeze import Freeze
from ddfnet.engine.grad_checkpointing import checkpoint_gradients
from ddfnet.tasks import Config, Task


def prepare_model(
    model: nn.Module, config: Config, task: Task, distributed: Distributed, *, log: Callable[[str], object]
) -> tuple[nn.Module, Freeze]:
    """The model on its device, and what of it does not train. UserError where the configuration does not fit it."""
    settings = config.train
    shared_norms = settings.sync_bn and distributed.world_size > 1  # several images in any case
    if shared_norms:
        model = synchronize_batch_norm(model, distributed.device)
    model = place(model, distributed.device, channels_last=settings.channels_last)
    freeze = Freeze(model, settings.freeze)
    if settings.freeze:
        log(str(freeze))
        if not config.model.start:
            log("note: what is frozen has random weights: name some to start from (model.init_checkpoint)")
    if settings.grad_checkpointing:
        checkpoint_gradients(model)
    if settings.device_batch_size == 1 and task.train_shape is not None and not shared_norms:
        check_batch_of_one(model, freeze, task.train_shape)
    return model, freeze
