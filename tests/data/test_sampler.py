import itertools

import numpy as np
import pytest

from ddfnet.data.sampler import TrainSampler, epoch_order, eval_indices, permutation

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
        assert batch == [(epoch, i, 0) for i in expected.tolist()]


def test_an_epoch_shows_no_image_twice():
    batches = list(sampler(end_step=4))
    seen = [i for batch in batches for _, i, _ in batch]
    assert len(seen) == 96
    assert len(set(seen)) == 96


def test_batches_are_pinned():
    """Without repeats, the order is the one from before there were any."""
    batches = list(sampler(length=11, global_batch=4, rank=1, world_size=2, seed=6, end_step=4))
    assert batches == [[(0, 9, 0), (0, 10, 0)], [(0, 3, 0), (0, 0, 0)], [(1, 10, 0), (1, 7, 0)], [(1, 4, 0), (1, 2, 0)]]


def test_repeats_show_the_first_images_of_the_permutation_several_times():
    order = epoch_order(11, 6, 2, repeats=3)
    first = permutation(11, 6, 2)[:4].tolist()
    assert order.tolist() == [[i, repeat] for i in first for repeat in range(3)][:11]
    assert np.array_equal(epoch_order(11, 6, 2)[:, 0], permutation(11, 6, 2))
    assert not epoch_order(11, 6, 2)[:, 1].any()
    assert not np.array_equal(order, epoch_order(11, 6, 3, repeats=3))
    assert set(epoch_order(3, 0, 0, repeats=8)[:, 0].tolist()) == {int(permutation(3, 0, 0)[0])}


def test_an_epoch_with_repeats_is_as_long_and_shows_fewer_images():
    batches = list(sampler(repeats=3, end_step=4))
    assert len(batches) == len(list(sampler(end_step=4))) == 4
    shown = [i for batch in batches for _, i, _ in batch]
    assert len(shown) == 96
    assert len(set(shown)) == 32
    assert all(shown.count(i) == 3 for i in shown)


@pytest.mark.parametrize("repeats", [2, 4])
def test_repeats_of_an_image_fall_on_different_processes_of_one_step(repeats):
    ranks = [list(sampler(rank=r, world_size=4, repeats=repeats)) for r in range(4)]
    for step in range(BASE["end_step"]):
        where = {}
        for rank, batches in enumerate(ranks):
            for _, i, repeat in batches[step]:
                where.setdefault(i, {})[repeat] = rank
        assert all(len(set(places.values())) == len(places) == repeats for places in where.values())


def test_repeats_that_do_not_divide_the_batch_continue_in_the_next_step():
    """global_batch = 24 and 5 repeats: the cut image is the only one that two steps share."""
    first, second = (list(batch) for batch in sampler(repeats=5, end_step=2))
    shared = {i for _, i, _ in first} & {i for _, i, _ in second}
    assert shared == {first[-1][1]}
    assert [repeat for _, i, repeat in first + second if i in shared] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(("world_size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_processes_and_accumulation_share_micro_batches(world_size, accumulation, repeats):
    """Micro-batch q of a step is the same list wherever it is read."""
    single = list(sampler(accumulation=4, repeats=repeats))
    layout = {"world_size": world_size, "accumulation": accumulation, "repeats": repeats}
    ranks = [list(sampler(rank=r, **layout)) for r in range(world_size)]
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


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 9, 11])
def test_resuming_is_the_tail_of_the_full_run(start, repeats):
    layout = {"rank": 1, "world_size": 2, "accumulation": 2, "repeats": repeats}
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


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 50])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_covers_everything_once(length, world_size):
    shares = [list(eval_indices(length, rank, world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


UNEVEN = np.repeat([0, 1, 3], [2, 31, 70])  # no image of class 2


def test_balanced_order_shows_classes_equally_often():
    order = epoch_order(103, 3, 0, labels=UNEVEN)
    counts = np.bincount(UNEVEN[order[:, 0]]).tolist()
    assert len(order) == 103
    assert counts[2] == 0
    assert sorted(counts) == [0, 34, 34, 35]
    assert len({tuple(row) for row in order.tolist()}) == 103  # each showing is augmented anew
    for image in (0, 1):
        assert sorted(order[order[:, 0] == image, 1].tolist()) in (list(range(17)), list(range(18)))
    large = order[UNEVEN[order[:, 0]] == 3, 0]
    assert len(set(large.tolist())) == len(large)  # none twice while others wait
    assert np.abs(np.diff(np.flatnonzero(UNEVEN[order[:, 0]] == 0))).max() > 1  # in random order


def test_balanced_order_depends_on_seed_and_epoch_alone():
    first = epoch_order(103, 3, 1, labels=UNEVEN)
    assert np.array_equal(first, epoch_order(103, 3, 1, labels=UNEVEN))
    assert not np.array_equal(first, epoch_order(103, 3, 2, labels=UNEVEN))
    assert not np.array_equal(first, epoch_order(103, 4, 1, labels=UNEVEN))


def test_balanced_order_is_pinned():
    """A release of numpy that draws differently would change resumed runs: this says so."""
    assert epoch_order(6, 7, 5, labels=np.array([0, 0, 0, 0, 0, 1])).tolist() == [
        [2, 0],
        [5, 2],
        [1, 0],
        [4, 0],
        [5, 1],
        [5, 0],
    ]


def test_balanced_order_with_repeats_keeps_every_draw_apart():
    order = epoch_order(103, 3, 0, repeats=3, labels=UNEVEN)
    assert len({tuple(row) for row in order.tolist()}) == 103
    assert order[0::3, 0][:34].tolist() == order[1::3, 0].tolist()
    labels = np.repeat([0, 1, 2], [60, 20, 16])
    for repeats in (1, 2, 4):
        assert np.bincount(labels[epoch_order(96, 3, 0, repeats, labels)[:, 0]]).tolist() == [32, 32, 32]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_balanced_batches_are_the_same_for_any_number_of_processes(world_size, accumulation):
    def steps(**layout):
        ranks = [list(sampler(labels=UNEVEN, rank=rank, **layout)) for rank in range(layout["world_size"])]
        count, width = len(ranks[0]), layout["accumulation"]
        return [
            sorted(entry for rank in ranks for batch in rank[i : i + width] for entry in batch)
            for i in range(0, count, width)
        ]

    assert steps(world_size=world_size, accumulation=accumulation) == steps(world_size=1, accumulation=1)


def test_a_balanced_run_starts_at_any_step():
    whole = list(sampler(labels=UNEVEN))
    assert list(sampler(labels=UNEVEN, start_step=5)) == whole[5:]
