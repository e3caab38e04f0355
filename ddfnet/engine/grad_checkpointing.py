"""Gradient checkpointing: activations computed again in the backward pass instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ddfnet.utils.errors import ConfigError


def checkpoint_gradients(model: nn.Module) -> None:
    """Switches it on; ConfigError where the network does not have it."""
    enable = getattr(model, "set_grad_checkpointing", None)
    try:
        if enable is not None:
            enable(True)
    except (AssertionError, NotImplementedError, TypeError):  # timm's way to say no
        enable = None
    if enable is None or not any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
        raise ConfigError(
            f"train.grad_checkpointing=true: {type(model).__name__} has no gradient checkpointing; set it to false and "
            "lower train.device_batch_size, which accumulates the same batch in more steps"
        )


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Around the backward pass, which runs blocks once more: batch norms are to count each batch once.

    Their buffers alone: others (position tables, masks, what a hook writes) are not of the pass that runs again.
    """
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
