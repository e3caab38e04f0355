import json
import pickle
import random
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as tv

from ddfnet.data.augment import AugmentConfig, train_transform
from ddfnet.data.preprocessing import Interpolation, Preprocessing, eval_transform


def make_image(width, height, key=0):
    pixels = np.random.default_rng(key).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def seeded(call, seed=0):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return call()


# --- Preprocessing ----------------------------------------------------------------------------------------------------


def test_preprocessing_survives_json():
    one = Preprocessing(size=96, crop_pct=0.95, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    assert Preprocessing.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert hash(one)


def test_preprocessing_defaults_are_imagenets():
    values = Preprocessing().to_dict()
    assert values["input_size"] == 224
    assert values["mean"] == [0.485, 0.456, 0.406]
    assert values["std"] == [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size"),
        ({"size": 224.0}, "size"),
        ({"crop_pct": 1.2}, "crop_pct"),
        ({"interpolation": "random"}, "bicubic"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
    ],
)
def test_preprocessing_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**change)


def test_from_dict_is_strict():
    values = Preprocessing().to_dict()
    with pytest.raises(ValueError, match=r"unknown: \['crop'\]"):
        Preprocessing.from_dict({**values, "crop": 1})
    del values["std"]
    with pytest.raises(ValueError, match=r"missing: \['std'\]"):
        Preprocessing.from_dict(values)


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(160, 120), (120, 160), (64, 400), (40, 40), (16, 8)])
@pytest.mark.parametrize(("input_size", "crop_pct", "interpolation"), [(64, 0.875, "bicubic"), (48, 1.0, "bilinear")])
def test_eval_pixels_are_timms(size, input_size, crop_pct, interpolation):
    """Against timm's plain (not prefetcher) pipeline: the same numbers once divided by 255."""
    image = make_image(*size)
    options = {"input_size": input_size, "crop_pct": crop_pct, "interpolation": interpolation}
    ours = eval_transform(Preprocessing(size=input_size, crop_pct=crop_pct, interpolation=interpolation))(image)
    theirs = create_transform(**options, is_training=False, mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert ours.dtype == torch.uint8
    assert tuple(ours.shape) == (3, input_size, input_size)
    assert torch.equal(ours.float() / 255, theirs)


def test_eval_by_hand():
    """Short side to floor(size / crop_pct), then the center."""
    image = make_image(160, 120)
    resized = image.resize((int(73 * 160 / 120), 73), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 64) / 2), round((73 - 64) / 2)
    expected = np.asarray(resized.crop((left, top, left + 64, top + 64)))
    ours = eval_transform(Preprocessing(size=64))(image)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "bilinear", "scale": (0.3, 0.8), "ratio": (1.0, 1.0)},
        {"hflip": 0.0, "vflip": 0.7},
        {"color_jitter": 0.3},
        {"rand_augment": "rand-m7-mstd0.5-inc1"},
        {"rand_augment": "3a"},
    ],
)
def test_train_pixels_are_timms(options):
    image = make_image(120, 96)
    theirs = dict(options)
    theirs["auto_augment"] = theirs.pop("rand_augment", None)
    theirs.setdefault("interpolation", "random")
    reference = create_transform(input_size=48, is_training=True, use_prefetcher=True, **theirs)
    ours = train_transform(Preprocessing(size=48), AugmentConfig(**options))
    for seed in range(6):
        assert torch.equal(seeded(lambda: ours(image), seed), seeded(lambda: reference(image), seed))


@pytest.mark.parametrize(
    ("policy", "jitters"), [(None, True), ("rand-m9", False), ("original", False), ("augmix-m3", False), ("3a", True)]
)
def test_color_jitter_is_off_with_a_policy_except_3_augment(policy, jitters):
    steps = train_transform(Preprocessing(size=24), AugmentConfig(rand_augment=policy)).transforms
    assert any(type(step).__name__ == "ColorJitter" for step in steps) == jitters


def test_trivial_augment_takes_the_place_of_the_policy_and_of_the_jitter():
    """Against torchvision's own chain: crop, flip, TrivialAugment."""
    image = make_image(120, 96)
    preprocessing = Preprocessing(size=48, mean=(0.2, 0.5, 0.8))
    ours = train_transform(
        preprocessing, AugmentConfig(interpolation="bilinear", trivial_augment=True, color_jitter=0.4)
    )
    bilinear = tv.InterpolationMode.BILINEAR
    theirs = tv.Compose(
        [
            *train_transform(preprocessing, AugmentConfig(interpolation="bilinear", color_jitter=0)).transforms[:-1],
            tv.TrivialAugmentWide(interpolation=bilinear, fill=[51, 128, 204]),
            tv.PILToTensor(),
        ]
    )
    plain = train_transform(preprocessing, AugmentConfig(interpolation="bilinear", color_jitter=0))
    changed = 0
    for seed in range(30):
        made = seeded(lambda: ours(image), seed)
        assert made.dtype == torch.uint8
        assert torch.equal(made, seeded(lambda: theirs(image), seed))
        changed += not torch.equal(made, seeded(lambda: plain(image), seed))
    assert changed > 15


def test_two_policies_are_refused():
    with pytest.raises(ValueError, match=r"trivial_augment=true and augment.rand_augment=rand-m7 contradict"):
        train_transform(Preprocessing(), AugmentConfig(rand_augment="rand-m7", trivial_augment=True))


def test_color_jitter_zero_is_none():
    for value in (0, 0.0):
        steps = train_transform(Preprocessing(), AugmentConfig(color_jitter=value)).transforms
        assert not any(type(step).__name__ == "ColorJitter" for step in steps)


def test_pad_crop_is_a_shifted_copy_with_black_borders():
    image = make_image(32, 32)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    windows = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    transform = train_transform(Preprocessing(size=32), AugmentConfig(crop="pad", hflip=0.0, color_jitter=0))
    shifts = set()
    for seed in range(40):
        out = seeded(lambda: transform(image), seed)
        matching = [shift for shift, window in windows.items() if torch.equal(out, window)]
        assert len(matching) == 1
        shifts.add(matching[0])
    assert len(shifts) > 20


def test_pad_crop_resizes_other_sizes():
    transform = train_transform(Preprocessing(size=32), AugmentConfig(crop="pad", rand_augment="rand-m5"))
    assert tuple(transform(make_image(48, 80)).shape) == (3, 32, 32)


@pytest.mark.parametrize(
    "policy",
    [
        "rand",
        "rand-m9-n3-mstd0.5",
        "rand-m7-mstd0.5-inc1",
        "rand-m15-p0.3-mmax20-n2",
        "rand-mstd1-tweights",
        "rand-m8-inc1-t3a",
        "augmix-m5-w4-d2",
        "augmix-m3-a0.5-b1",
        "original",
        "originalr-mstd0.5",
        "v0",
        "v0r",
        "3a",
    ],
)
def test_policies_of_timm_are_accepted(policy):
    transform = train_transform(Preprocessing(size=24), AugmentConfig(rand_augment=policy))
    assert tuple(seeded(lambda: transform(make_image(40, 32))).shape) == (3, 24, 24)


@pytest.mark.parametrize(
    "policy",
    [
        "auto",
        "rnd-m7",
        "rand-m",
        "rand-m7.5",
        "rand-x3",
        "rand-tfoo",
        "rand-m7--n2",
        "rand-m7-mstdinf",
        "rand-inc2",
        "augmix-t3",
        "v1",
        "original-m7",
        "randaugment",
        "3a-m5",
    ],
)
def test_malformed_policies_are_refused(policy):
    """timm itself skips several of these without a word."""
    with pytest.raises(ValueError, match=r"is not a policy of timm.*rand-m7-mstd0\.5-inc1"):
        train_transform(Preprocessing(), AugmentConfig(rand_augment=policy))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "cubic"}, "bicubic"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"hflip": 1.5}, "hflip"),
        ({"vflip": -0.1}, "vflip"),
        ({"crop": "center"}, "'random_resized' or 'pad'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_transform(Preprocessing(), AugmentConfig(**options))


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_every_interpolation_works(interpolation):
    preprocessing = Preprocessing(size=24, interpolation=interpolation)
    assert eval_transform(preprocessing)(make_image(40, 32)).shape == (3, 24, 24)
    assert train_transform(preprocessing, AugmentConfig(interpolation=interpolation))(make_image(40, 32)).shape == (
        3,
        24,
        24,
    )


@pytest.mark.parametrize("policy", [None, "rand-m7-mstd0.5-inc1", "augmix-m5", "v0", "3a", "trivial"])
def test_transforms_pickle(policy):
    """Where workers are spawned instead of forked, they travel by pickle."""
    image = make_image(40, 32)
    chosen = {"trivial_augment": True} if policy == "trivial" else {"rand_augment": policy}
    transform = train_transform(Preprocessing(size=24), AugmentConfig(**chosen))
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(seeded(lambda: transform(image)), seeded(lambda: again(image)))
