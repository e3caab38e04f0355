import itertools

import numpy as np
import pytest

from ddfnet.data import TrainSampler, eval_indices, permutation, steps_per_epoch
from ddfnet.errors import DataError

BASE = {"length": 103, "global_batch": 24, "seed": 3, "start_step": 0, "end_step": 11}


def sampler(**changes):
    return TrainSampler(**{**BASE, "rank": 0, "world_size": 1, "accumulation": 1, **changes})


def test_permutation_is_a_pure_function():
    first = permutation(50, 1, 2)
    assert first.dtype == np.int64
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() == permutation(50, 1, 2).tolist()
    assert first.tolist() != permutation(50, 1, 3).tolist()
    assert first.tolist() != permutation(50, 2, 2).tolist()


def test_permutation_is_pinned():
    """A release of numpy that orders differently would change resumed runs: this says so."""
    assert permutation(10, 7, 5).tolist() == [8, 5, 1, 2, 9, 7, 4, 3, 0, 6]


def test_steps_take_consecutive_entries_of_the_epochs_permutation():
    per_epoch = 103 // 24
    for step, batch in enumerate(sampler()):
        epoch, position = divmod(step, per_epoch)
        expected = permutation(103, 3, epoch)[position * 24 : (position + 1) * 24]
        assert batch == [(epoch, i) for i in expected.tolist()]


def test_an_epoch_shows_no_image_twice():
    batches = list(sampler(end_step=4))
    seen = [i for batch in batches for _, i in batch]
    assert len(seen) == 96
    assert len(set(seen)) == 96


@pytest.mark.parametrize(("world_size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_processes_and_accumulation_share_micro_batches(world_size, accumulation):
    """Micro-batch q of a step is the same list wherever it is read."""
    single = list(sampler(accumulation=4))
    ranks = [list(sampler(rank=r, world_size=world_size, accumulation=accumulation)) for r in range(world_size)]
    for step in range(BASE["end_step"]):
        together = [ranks[r][step * accumulation + m] for m in range(accumulation) for r in range(world_size)]
        assert together == single[4 * step : 4 * step + 4]


def test_micro_batches_partition_the_step():
    whole = list(sampler())
    parts = [list(sampler(rank=r, world_size=3, accumulation=2)) for r in range(3)]
    for step, batch in enumerate(whole):
        pieces = [part[2 * step + m] for part in parts for m in range(2)]
        assert {len(piece) for piece in pieces} == {4}
        assert sorted(itertools.chain(*pieces)) == sorted(batch)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9, 11])
def test_resuming_is_the_tail_of_the_full_run(start):
    layout = {"rank": 1, "world_size": 2, "accumulation": 2}
    full = list(sampler(**layout))
    resumed = sampler(**layout, start_step=start)
    assert list(resumed) == full[2 * start :]
    assert len(resumed) == len(full) - 2 * start


def test_a_late_start_builds_one_permutation_only(monkeypatch):
    from ddfnet.data import sampler as module

    epochs = []
    monkeypatch.setattr(module, "permutation", lambda n, seed, epoch: epochs.append(epoch) or np.arange(n))
    list(sampler(start_step=4 * 1000, end_step=4 * 1000 + 6))
    assert epochs == [1000, 1001]


def test_iterating_twice_gives_the_same():
    one = sampler()
    assert list(one) == list(one)


def test_too_small_a_set():
    with pytest.raises(DataError, match=r"20 images, fewer than one global batch of 24"):
        sampler(length=20)
    assert steps_per_epoch(24, 24) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 5}, r"global_batch=24 must divide by world_size \* accumulation = 5 \* 1"),
        ({"accumulation": 7}, "multiple of 7"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"accumulation": 0}, "accumulation"),
        ({"start_step": 12}, "start_step=12"),
        ({"global_batch": 0}, "global_batch"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        sampler(**changes)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 50])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_covers_everything_once(length, world_size):
    shares = [list(eval_indices(length, rank, world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_evaluation_rank_out_of_range():
    with pytest.raises(ValueError, match="rank=3"):
        eval_indices(10, 3, 3)
