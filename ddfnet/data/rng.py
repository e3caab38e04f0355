"""Random draws keyed by what they belong to.

timm's transforms draw from Python's `random` and from numpy's global generator, torchvision's from torch's default
generator. All three are seeded from one key, so a draw depends on its key alone.
"""

import hashlib
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

# First part of a key: keeps the draws of different uses apart.
SAMPLE, REPLACEMENT, BATCH, GEOMETRY, POLICY, ERASING = range(6)

Integers = Sequence[int] | np.ndarray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: SplitMix64's step


def key_seeds(*key: int) -> tuple[int, int, int]:
    """Three independent seeds of 64, 32 and 64 bits for a key of integers (each within int64)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=20).digest()
    return struct.unpack("<QIQ", digest)


def entry_key(kind: int, seed: int, epoch: int, index: int, repeat: int) -> tuple[int, ...]:
    """Key of the draws for one entry of an epoch. The first showing of an image has the key that it has without
    repeated augmentation, so a run without repeats draws what it did before there were any."""
    return (kind, seed, epoch, index, repeat) if repeat else (kind, seed, epoch, index)


def uniforms(kind: int, seed: int, epoch: int, indices: Integers, repeats: Integers, count: int) -> np.ndarray:
    """Uniform draws in [0, 1) for the samples of a batch: float64 (B, count), a row for each of `indices`.

    A row depends on (kind, seed, epoch, its index, its repeat) alone, and its first numbers not on `count`. A whole
    batch is drawn at once: seeding a generator for each image took longer than cropping a small one.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a finalizer over
    a counter, which starts at a hash of the key.
    """
    base = np.uint64(key_seeds(kind, seed, epoch)[0])
    index, repeat = np.asarray(indices, np.int64).view(np.uint64), np.asarray(repeats, np.int64).view(np.uint64)
    start = _mix(_mix(base + _mix(index)) + _mix(~repeat))  # hashed twice: neighbors start far from one another
    counter = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(start[:, None] + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, a bijection of the 64-bit integers."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


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
def keyed_generators(*key: int) -> Iterator[None]:
    """Seeds the global generators from `key` inside the block and restores them after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.default_generator.get_state()
    try:
        seed_generators(*key)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)
