"""Which image is read when: pure functions of (seed, step), the same for every number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Request = tuple[int, int, int]  # (epoch, image index, repeat of the image within the epoch)


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the images in one epoch: int64 (length,), a permutation that depends on the arguments only."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def balanced_order(labels: np.ndarray, seed: int, epoch: int, length: int) -> np.ndarray:
    """Order of the images in one epoch that shows all classes equally often, in random order.

    Of `length` entries and K classes that have any, each class gets length // K, and length % K of them, drawn anew in
    each epoch, one more. Within a class no image is shown again before all others were.

    Args:
        labels: int (N,), class of each image.

    Returns:
        int64 (length, 2): image index, and how often it was shown before in this epoch; depends on the arguments only.
    """
    rng = np.random.default_rng((seed, epoch))
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    members = [images for images in members if len(images)]
    shows = np.full(len(members), length // len(members))
    shows[rng.permutation(len(members))[: length % len(members)]] += 1
    entries = []
    for images, count in zip(members, shows.tolist(), strict=True):
        rounds = [rng.permutation(images) for _ in range(-(-count // len(images)))]
        shown = np.arange(count)
        entries.append(np.stack([np.concatenate(rounds or [images])[:count], shown // len(images)], axis=1))
    return rng.permutation(np.concatenate(entries))


def epoch_order(length: int, seed: int, epoch: int, repeats: int = 1, labels: np.ndarray | None = None) -> np.ndarray:
    """Order of the samples of one epoch: the permutation, each image `repeats` times in a row, cut off after `length`.

    With `labels` of the images, `balanced_order` takes the place of the permutation.

    With `repeats` above 1 this is repeated augmentation (Hoffer et al., arXiv 1901.09335, in the form that made it
    common: as many samples per epoch as before, so only the first `length / repeats` images of the permutation).

    Returns:
        int64 (length, 2): image index, and which repeat of the image it is, counted from 0.
    """
    samples = np.arange(length)
    if labels is not None:
        index, shown = balanced_order(labels, seed, epoch, -(-length // repeats))[samples // repeats].T
        return np.stack([index, shown * repeats + samples % repeats], axis=1)
    return np.stack([permutation(length, seed, epoch)[samples // repeats], samples % repeats], axis=1)


@dataclass(frozen=True)
class TrainSampler:
    """Batch sampler over a whole run, from one optimizer step to another.

    Step s takes `global_batch` consecutive entries of its epoch's order (`epoch_order`), cut by stride into
    `world_size * accumulation` micro-batches; the rest of an epoch is dropped. Micro-batch `m * world_size + rank` is
    this process's m-th of the step: N processes, and one process that accumulates N micro-batches, see the same
    micro-batches. Starting at any step costs nothing.

    The stride also spreads the repeats of an image over as many micro-batches as there are. They share one step, but
    for an image at the border of two steps where `repeats` does not divide `global_batch`.

    Iterating yields lists of (epoch, index, repeat), `accumulation` of them per step; `len()` counts the lists.
    """

    length: int  # images in the training set, at least `global_batch`
    global_batch: int  # images per optimizer step, a multiple of `world_size * accumulation`: a `RunPlan` sees to it
    rank: int  # of this process
    world_size: int  # number of processes
    accumulation: int  # micro-batches per step and process
    seed: int  # keys the permutations
    start_step: int
    end_step: int  # the step after the last
    repeats: int = 1  # times that an epoch shows each of its images
    labels: np.ndarray | None = None  # class of each image, to show all classes equally often: see `balanced_order`

    def __len__(self) -> int:
        return (self.end_step - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Request]]:
        steps_per_epoch = self.length // self.global_batch
        micro_batches = self.world_size * self.accumulation
        order, order_epoch = np.empty((0, 2), np.int64), -1
        for step in range(self.start_step, self.end_step):
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.length, self.seed, epoch, self.repeats, self.labels), epoch
            base = step_of_epoch * self.global_batch
            for m in range(self.accumulation):
                q = m * self.world_size + self.rank
                entries = order[base + q : base + self.global_batch : micro_batches]
                yield [(epoch, i, repeat) for i, repeat in entries.tolist()]


def eval_indices(length: int, rank: int, world_size: int) -> range:
    """This process's images in an evaluation: each image belongs to exactly one process, nothing is padded."""
    return range(rank, length, world_size)
