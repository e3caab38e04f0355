import os
import random

import numpy as np
import pytest
import torch
from synthetic_images import draw

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.dataset import EvalDataset, TrainDataset
from ddfnet.data.policy import apply_policy, fill_color
from ddfnet.data.rng import GEOMETRY, uniforms
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import DataError

POLICIES = [None, "rand-m7-mstd0.5-inc1", "augmix-m5-w2", "original-mstd0.5", "3a", "trivial"]


WHOLE = AugmentConfig(
    scale=(1, 1), ratio=(1.25, 1.25), interpolation="bicubic", hflip=0, color_jitter=0
)  # of images of 40 x 32


def dataset(index, small, seed=0, policy="rand-m7-mstd0.5-inc1", **options):
    chosen = {"trivial_augment": True} if policy == "trivial" else {"rand_augment": policy}
    return TrainDataset(index, small, AugmentConfig(**chosen), seed=seed, **options)


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.default_generator.get_state().tolist()


def test_item_is_a_uint8_image_with_label_index_and_no_problem(index, small):
    image, label, i, problem = dataset(index, small)[(0, 7, 0)]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 24, 24))
    assert (label, i, problem) == (1, 7, "")


@pytest.mark.parametrize("policy", POLICIES)
def test_pixels_depend_on_seed_epoch_index_and_repeat_only(index, small, policy):
    forward = {i: dataset(index, small, policy=policy)[(2, i, 0)][0] for i in range(18)}
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    again = dataset(index, small, policy=policy)
    for i in reversed(range(18)):
        assert torch.equal(again[(2, i, 0)][0], forward[i])
    other_epoch = sum(torch.equal(again[(3, i, 0)][0], forward[i]) for i in range(18))
    other_seed = sum(torch.equal(dataset(index, small, 1, policy)[(2, i, 0)][0], forward[i]) for i in range(18))
    other_repeat = sum(torch.equal(again[(2, i, 1)][0], forward[i]) for i in range(18))
    assert other_epoch == other_seed == other_repeat == 0
    assert torch.equal(again[(2, 5, 1)][0], dataset(index, small, policy=policy)[(2, 5, 1)][0])


def test_draws_are_pinned(index, small):
    """Other draws for an image would change resumed runs."""
    made = dataset(index, small).geometry
    pinned = {(2, 7, 0): (31, 19, 472, 375), (0, 3, 0): (135, 81, 424, 372), (0, 3, 1): (354, 96, 477, 224)}
    for request, expected in pinned.items():
        (draws,) = uniforms(GEOMETRY, 11, request[0], [request[1]], [request[2]], made.count).tolist()
        assert made.box(draws, 500, 375) == expected


def test_a_sample_does_not_depend_on_its_batch(index, small):
    data = dataset(index, small)
    requests = [(1, i, repeat) for i in (3, 17, 3, 0) for repeat in (0, 1)]
    batch = data.read(requests)
    for request, image in zip(requests, batch["image"], strict=True):
        assert torch.equal(data[request][0], image)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert "policy" not in batch


@pytest.mark.parametrize("policy", ["rand-m7-mstd0.5-inc1", "v0", "3a", "trivial", None])
def test_operations_on_the_device_are_those_of_the_workers(index, small, policy):
    """The same draws: what Pillow makes of one image, the batched operations make of all, within one level each."""
    requests = [(0, i, 0) for i in range(18)]
    here, there = (dataset(index, small, policy=policy, on_device=choice).read(requests) for choice in (False, True))
    made = apply_policy(there["image"], there["policy"], fill_color(small))
    assert (made.int() - here["image"].int()).abs().float().mean() < 0.1
    assert not torch.equal(there["image"], here["image"])
    plain = TrainDataset(index, small, AugmentConfig(color_jitter=0), seed=0).read(requests)
    assert torch.equal(plain["image"], there["image"])


def test_leaves_the_callers_generators_alone(index, small):
    before = global_states()
    dataset(index, small)[(0, 0, 0)]
    EvalDataset(index, small)[0]
    assert global_states() == before


def break_file(index, i, content=b"not an image"):
    with open(index.name(i), "wb") as file:
        file.write(content)


def test_corrupt_training_image_is_replaced_the_same_way_every_time(index, small):
    break_file(index, 4)
    data = dataset(index, small)
    image, _, i, problem = data[(0, 4, 0)]
    assert i == 4
    assert "UnidentifiedImageError" in problem
    assert torch.equal(image, dataset(index, small)[(0, 4, 0)][0])
    shown = TrainDataset(index, small, WHOLE, seed=0)
    assert torch.equal(shown[(0, 4, 0)][0], shown[(0, 4, 2)][0])  # repeats share the stand-in
    stand_ins = {data._replacement(epoch, 4, 1) for epoch in range(30)}
    assert len(stand_ins) > 5
    assert 4 not in stand_ins


def test_a_replacement_brings_its_own_label(tmp_path, small):
    for name in "abcdef":
        draw(tmp_path / name / "0.png", ord(name))
    index = index_folder(tmp_path)
    shown = TrainDataset(index, small, WHOLE, seed=0)
    originals = [shown[(0, i, 0)][0] for i in range(6)]
    break_file(index, 2)
    for epoch in range(8):
        image, label, _, problem = shown[(epoch, 2, 0)]
        assert problem
        assert label != 2
        assert torch.equal(image, originals[label])


def test_corrupt_replacements_are_replaced_too(index, small):
    data = dataset(index, small)
    break_file(index, 4)
    break_file(index, data._replacement(0, 4, 1))
    assert data[(0, 4, 0)][3]


def test_gives_up_when_everything_is_corrupt(index, small):
    for i in range(len(index)):
        break_file(index, i)
    with pytest.raises(DataError, match=r"004\.png is corrupt .*check_data\.py"):
        dataset(index, small)[(0, 4, 0)]


def test_a_defect_is_not_taken_for_a_corrupt_image(index, small, monkeypatch):
    data = dataset(index, small)
    monkeypatch.setattr(data.geometry, "write", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data[(0, 0, 0)]


def test_evaluation_refuses_a_corrupt_image(index, small):
    data = EvalDataset(index, small)
    image, label, i = data[17]
    assert (image.dtype, tuple(image.shape), label, i) == (torch.uint8, (3, 24, 24), 2, 17)
    break_file(index, 17)
    with pytest.raises(DataError, match=r"eel.005\.png is corrupt \(UnidentifiedImageError"):
        data[17]


def test_a_missing_file_is_a_corrupt_image(index, small):
    os.remove(index.name(3))
    assert "FileNotFoundError" in dataset(index, small)[(0, 3, 0)][3]
    with pytest.raises(DataError, match="FileNotFoundError"):
        EvalDataset(index, small)[3]


def test_reasons_are_one_line_without_the_path(index, small):
    break_file(index, 0)
    os.remove(index.name(1))
    reasons = [dataset(index, small)[(0, i, 0)][3] for i in range(2)]
    assert reasons[0] == "UnidentifiedImageError: not an image, or its header is damaged"
    assert reasons[1] == "FileNotFoundError: No such file or directory"
