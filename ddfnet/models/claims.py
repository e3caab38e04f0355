"""What a checkpoint claims of its network, which may come from anybody: checked before anything gets memory for it."""

from collections.abc import Iterator
from typing import Any

import timm
import torch

from ddfnet.checkpoint import Weights
from ddfnet.models.factory import create_model
from ddfnet.utils.errors import CheckpointError

_ANY_FILE_MAY = 4096  # sizes up to here cost little memory, whatever they stand for
_MOST_TIMES = 4  # as many values as the file has: position embeddings may be resized, a classifier exchanged


def check_sizes(weights: Weights, described: Any, *, source: object) -> None:
    """CheckpointError where a file describes its network with a number above all dimensions of its tensors.

    Args:
        described: numbers, in dictionaries and lists.
    """
    largest = max((size for tensor in weights.state_dict.values() for size in tensor.shape), default=0)
    for key, size in _numbers(described):
        if size > max(largest, _ANY_FILE_MAY):
            raise CheckpointError(
                f"{source} describes its network with {key}={size:g}, and no dimension of its tensors is above "
                f"{largest}: refused. Get another file from its author"
            )


def check_names(described: Any, *, source: object) -> None:
    """CheckpointError where a file names a model that would be looked for in a folder, a file or the network."""
    for key, name in _texts(described):
        if ":" in name or "/" in name:
            raise CheckpointError(f"{source} names {key}={name!r}, which would be looked for elsewhere: refused")


def check_network(weights: Weights, name: str, num_classes: int, kwargs: dict[str, Any], *, source: object) -> None:
    """CheckpointError where a file names no plain model, or one that is far larger than its tensors are."""
    check_names({"model": name}, source=source)
    if not timm.is_model(name):
        return  # its own error has more to say
    check_sizes(weights, {"num_classes": num_classes, **kwargs}, source=source)
    try:
        with torch.device("meta"):
            network = create_model(name, num_classes=num_classes, **kwargs)
    except Exception:  # some networks cannot be built without memory, others not at all: their own error comes later
        return
    needed = sum(tensor.numel() for tensor in network.state_dict().values())
    present = sum(tensor.numel() for tensor in weights.state_dict.values())
    if needed > _MOST_TIMES * max(present, 10**6):
        raise CheckpointError(
            f"{source} describes a network of {needed:,} values and holds {present:,}: refused. Get another file"
        )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    yield from ((name, item) for name, item in _leaves(value, key) if isinstance(item, int | float))


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    yield from ((name, item) for name, item in _leaves(value, key) if isinstance(item, str))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value
