"""Random erasing of whole batches: its boxes against timm's, and what is filled."""

import random

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from ddfnet.data.augment import ErasingConfig
from ddfnet.data.erasing import BatchErasing, draw_boxes
from ddfnet.data.rng import ERASING, keyed_generators, uniforms

DRAWS = 6000


def boxes(p, count, height, width, draws=DRAWS):
    return draw_boxes(uniforms(ERASING, 0, 0, range(draws), [0] * draws, 2 + 22 * count), p, count, height, width)


def timm_boxes(p, count, height, width, draws=DRAWS):
    """[(top, left, bottom, right), ...] of each draw of timm's class: it assigns to slices of an image."""

    class Noting:
        def __setitem__(self, key, value):
            _, rows, columns = key
            found.append((rows.start, columns.start, rows.stop, columns.stop))

    erasing, result = RandomErasing(p, max_count=count, mode="const", device="cpu"), []
    with keyed_generators(7):
        for _ in range(draws):
            found = []
            erasing._erase(Noting(), 3, height, width, torch.float32)
            result.append(found)
    return result


@pytest.mark.parametrize(("p", "count", "height", "width"), [(0.25, 1, 224, 224), (1.0, 3, 32, 32), (0.6, 2, 20, 48)])
def test_boxes_are_distributed_as_timms(p, count, height, width):
    ours, theirs = boxes(p, count, height, width), timm_boxes(p, count, height, width)
    assert ours.shape == (DRAWS, count, 4)
    present = ours.any(2)
    for number in range(count + 1):
        a, b = (present.sum(1) == number).sum(), sum(len(found) == number for found in theirs)
        assert abs(a - b) <= 5 * np.sqrt(a + b) + 1
    flat, flat_theirs = ours[present], np.array([box for found in theirs for box in found])
    measures = (
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2] - box[:, 0],
        lambda box: box[:, 3] - box[:, 1],
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
    )
    for measure in measures:
        a, b = np.sort(measure(flat)), np.sort(measure(flat_theirs))
        at = np.concatenate([a, b])
        apart = abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max()
        assert apart <= 2 * np.sqrt(1 / len(a) + 1 / len(b))
    assert flat[:, 2].max() <= height
    assert flat[:, 3].max() <= width


def test_nothing_of_a_single_pixel_is_erased():
    top, left, bottom, right = np.moveaxis(boxes(1.0, 2, 1, 1, 50), 2, 0)
    assert not ((bottom - top) * (right - left)).any()


def test_extreme_draws_stay_inside():
    for value in (0.0, 1 - 2.0**-53):
        top, left, bottom, right = draw_boxes(np.full((1, 24), value), 2.0, 1, 32, 32)[0, 0]
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 32


def erased(mode, first=0, size=100, seed=0, epoch=0, count=2, p=0.7):
    erasing = BatchErasing(ErasingConfig(p=p, mode=mode, count=count), device="cpu", seed=seed)
    images = torch.full((size, 3, 24, 32), 9.0).to(memory_format=torch.channels_last)
    return erasing(images, epoch, torch.arange(first, first + size), torch.zeros(size, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_boxes_are_filled(mode):
    made = erased(mode)
    expected = draw_boxes(uniforms(ERASING, 0, 0, range(100), [0] * 100, 46), 0.7, 2, 24, 32)
    inside = torch.zeros(100, 24, 32, dtype=torch.bool)
    for row, pair in enumerate(expected):
        for top, left, bottom, right in pair:
            inside[row, top:bottom, left:right] = True
    assert torch.equal((made != 9.0).any(1), inside)
    filled = made.movedim(1, 3)[inside]
    if mode == "const":
        assert not filled.any()
        return
    assert abs(filled.mean()) < 0.1
    assert abs(filled.std() - 1) < 0.1
    one = made[expected[:, 1].any(1).argmax()] if mode == "rand" else None
    if one is not None:
        assert len(one.flatten(1).T.unique(dim=0)) <= 3  # two colors and what was there


def test_boxes_are_the_samples_own_and_the_noise_the_batchs():
    whole, part = erased("const"), erased("const", first=30, size=20)
    assert torch.equal(whole[30:50], part)
    assert torch.equal(erased("pixel"), erased("pixel"))
    for other in (erased("pixel", seed=1), erased("pixel", epoch=1), erased("pixel", first=1)):
        assert not torch.equal(erased("pixel"), other)


def test_the_global_generators_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.default_generator.get_state().tolist()
    erased("pixel")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.default_generator.get_state().tolist()
    assert after == before
