"""Random draws keyed by what they belong to.

timm's transforms draw from Python's `random` and from numpy's global generator, torchvision's from torch's default
generator. All three are seeded from one key, so a draw depends on its key alone.
"""

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# First part of a key: keeps the draws of different uses apart.
SAMPLE, REPLACEMENT, BATCH = range(3)


def key_seeds(*key: int) -> tuple[int, int, int]:
    """Three independent seeds of 64, 32 and 64 bits for a key of integers (each within int64)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=20).digest()
    return struct.unpack("<QIQ", digest)


def entry_key(kind: int, seed: int, epoch: int, index: int, repeat: int) -> tuple[int, ...]:
    """Key of the draws for one entry of an epoch. The first showing of an image has the key that it has without
    repeated augmentation, so a run without repeats draws what it did before there were any."""
    return (kind, seed, epoch, index, repeat) if repeat else (kind, seed, epoch, index)


def seed_generators(*key: int) -> None:
    """Seeds `random`, numpy's global generator and torch's default (CPU) generator from `key`.

    `torch.manual_seed` would also visit every accelerator and costs a hundred times more than the generator's own
    method, which matters once per image.
    """
    python_seed, numpy_seed, torch_seed = key_seeds(*key)
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.default_generator.manual_seed(torch_seed)


@contextmanager
def keyed_generators(*key: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators from `key` inside the block and restores them after it.

    Of a CUDA device, too. Generator states live on the host: nothing here waits for the device.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        # `default_generators` is filled when CUDA starts; asking for the current device starts it.
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_states = [generator.get_state() for generator in generators]
    try:
        seed_generators(*key)
        for generator in generators[1:]:
            generator.manual_seed(key_seeds(*key)[2])
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for generator, state in zip(generators, torch_states, strict=True):
            generator.set_state(state)
