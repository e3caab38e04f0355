"""Which image is read when: pure functions of (seed, step), the same for every number of processes."""

from collections.abc import Iterator

import numpy as np

from ddfnet.utils.errors import DataError

Request = tuple[int, int, int]  # (epoch, image index, repeat of the image within the epoch)


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the images in one epoch.

    Returns:
        int64 (length,), a permutation of `range(length)` that depends on the arguments only.
    """
    return np.random.default_rng((seed, epoch)).permutation(length)


def epoch_order(length: int, seed: int, epoch: int, repeats: int = 1) -> np.ndarray:
    """What one epoch reads, in order: the permutation, each image `repeats` times in a row, cut off after `length`.

    With `repeats` above 1 this is repeated augmentation (Hoffer et al., arXiv 1901.09335, in the form that made it
    common: as many samples per epoch as before, so only the first `length / repeats` images of the permutation).

    Returns:
        int64 (length, 2): image index, and which repeat of the image it is, counted from 0.
    """
    places = np.arange(length)
    return np.stack([permutation(length, seed, epoch)[places // repeats], places % repeats], axis=1)


def steps_per_epoch(length: int, global_batch: int) -> int:
    """Whole optimizer steps in one epoch of `length` images; the rest of an epoch is dropped.

    Raises:
        ValueError: `global_batch` is not positive.
        DataError: there are fewer images than one step needs.
    """
    if global_batch < 1:
        raise ValueError(f"global_batch must be at least 1, got {global_batch}")
    if length < global_batch:
        raise DataError(
            f"the training set has {length} images, fewer than one global batch of {global_batch}; "
            f"set a global batch of at most {length} or use more images"
        )
    return length // global_batch


class TrainSampler:
    """Batch sampler over a whole run, from one optimizer step to another.

    Step s consumes `global_batch` consecutive entries of its epoch's order (`epoch_order`), cut into
    `world_size * accumulation` micro-batches by stride. Micro-batch `m * world_size + rank` belongs to this process as
    its m-th of the step: N processes, and one process that accumulates N micro-batches, see the same micro-batches.
    Starting at any step costs nothing.

    The stride also spreads the repeats of an image over as many micro-batches as there are. They share one step, but
    for an image at the border of two steps where `repeats` does not divide `global_batch`.

    Iterating yields lists of (epoch, index, repeat), `accumulation` of them per step; `len()` counts the lists.

    Args:
        length: images in the training set.
        global_batch: images per optimizer step over all processes and micro-batches.
        rank, world_size: this process and the number of processes.
        accumulation: micro-batches per step and process.
        seed: keys the permutations.
        start_step, end_step: first step, and the step after the last.
        repeats: times that an epoch shows each of its images.

    Raises:
        ValueError: an argument is out of range, or `global_batch` does not divide into equal micro-batches.
        DataError: the set is smaller than one global batch.
    """

    def __init__(
        self,
        *,
        length: int,
        global_batch: int,
        rank: int,
        world_size: int,
        accumulation: int,
        seed: int,
        start_step: int,
        end_step: int,
        repeats: int = 1,
    ) -> None:
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank={rank} with world_size={world_size}")
        if accumulation < 1:
            raise ValueError(f"accumulation must be at least 1, got {accumulation}")
        if not 0 <= start_step <= end_step:
            raise ValueError(f"0 <= start_step <= end_step must hold, got start_step={start_step}, end_step={end_step}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self.steps_per_epoch = steps_per_epoch(length, global_batch)
        self.micro_batches = world_size * accumulation
        if global_batch % self.micro_batches:
            raise ValueError(
                f"global_batch={global_batch} must divide by world_size * accumulation = {world_size} * {accumulation} "
                f"= {self.micro_batches}; choose a multiple of {self.micro_batches}"
            )
        self.length = length
        self.global_batch = global_batch
        self.micro_batch = global_batch // self.micro_batches
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.seed = seed
        self.start_step = start_step
        self.end_step = end_step
        self.repeats = repeats

    def __len__(self) -> int:
        return (self.end_step - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Request]]:
        order, order_epoch = None, -1
        for step in range(self.start_step, self.end_step):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.length, self.seed, epoch, self.repeats), epoch
            base = step_of_epoch * self.global_batch
            for m in range(self.accumulation):
                q = m * self.world_size + self.rank
                entries = order[base + q : base + self.global_batch : self.micro_batches]
                yield [(epoch, i, repeat) for i, repeat in entries.tolist()]


def eval_indices(length: int, rank: int, world_size: int) -> range:
    """This process's images in an evaluation: every image belongs to exactly one process, nothing is padded.

    Shares differ by at most one image, so processes may have different numbers of batches (even none).
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank={rank} with world_size={world_size}")
    return range(rank, length, world_size)
