import json
from typing import get_args

import numpy as np
import PIL
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.models import get_pretrained_cfg

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.preprocessing import Interpolation, Preprocessing, eval_transform


def make_image(width, height, key=0):
    pixels = np.random.default_rng(key).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


# --- Preprocessing ----------------------------------------------------------------------------------------------------


def test_preprocessing_survives_json():
    one = Preprocessing(
        size=96, crop_pct=0.95, interpolation="bilinear", resize="torch", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)
    )
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
        ({"crop_pct": 1.6}, "crop_pct"),
        ({"crop_mode": "stretch"}, "squash"),
        ({"size": (32, 0)}, "size"),
        ({"size": (32, 48, 64)}, "size"),
        ({"interpolation": "random"}, "bicubic"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
    ],
)
def test_preprocessing_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**change)


def test_a_size_of_two_numbers_survives_json_and_a_square_is_one():
    assert Preprocessing(size=(48, 48)) == Preprocessing(size=48)
    wide = Preprocessing(size=[32, 48], crop_mode="border")
    assert wide.input_size == (3, 32, 48)
    assert wide.to_dict()["input_size"] == [32, 48]
    assert Preprocessing.from_dict(json.loads(json.dumps(wide.to_dict()))) == wide


def test_from_dict_is_strict():
    values = Preprocessing().to_dict()
    with pytest.raises(ValueError, match=r"unknown: \['crop'\]"):
        Preprocessing.from_dict({**values, "crop": 1})
    del values["std"]
    with pytest.raises(ValueError, match=r"missing: \['std'\]"):
        Preprocessing.from_dict(values)


def test_a_checkpoint_of_before_there_was_a_choice_has_pillows_pixels():
    values = Preprocessing().to_dict()
    assert Preprocessing.from_dict(values).resize == values.pop("resize") == "torch"
    assert Preprocessing.from_dict(values).resize == "pillow"
    assert values.pop("crop_mode") == Preprocessing.from_dict(values).crop_mode == "center"


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(160, 120), (120, 160), (64, 400), (40, 40), (16, 8)])
@pytest.mark.parametrize(("input_size", "crop_pct", "interpolation"), [(64, 0.875, "bicubic"), (48, 1.0, "bilinear")])
def test_eval_pixels_are_timms(size, input_size, crop_pct, interpolation):
    """Against timm's plain (not prefetcher) pipeline: the same numbers once divided by 255."""
    image = make_image(*size)
    how = {"size": input_size, "crop_pct": crop_pct, "interpolation": interpolation}
    options = {"input_size": input_size, "crop_pct": crop_pct, "interpolation": interpolation}
    ours = eval_transform(Preprocessing(**how, resize="pillow"))(image)
    theirs = create_transform(**options, is_training=False, mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert ours.dtype == torch.uint8
    assert tuple(ours.shape) == (3, input_size, input_size)
    assert torch.equal(ours.float() / 255, theirs)
    fast = eval_transform(Preprocessing(**how))(np.array(image))
    # Pillow 13 resizes some images columns first, which moves a few pixels by more.
    assert (fast.int() - ours.int()).abs().max() <= (2 if int(PIL.__version__.split(".")[0]) < 13 else 40)
    assert (fast.int() - ours.int()).abs().float().mean() < 0.05


def records():
    """What timm's records of classifiers ask for, each once."""
    found = set()
    for name in timm.list_pretrained():
        cfg = get_pretrained_cfg(name)
        size, crop_pct = cfg.test_input_size or cfg.input_size, cfg.test_crop_pct or cfg.crop_pct
        found.add((cfg.crop_mode, size[1:], crop_pct, cfg.interpolation))
        found.add((cfg.crop_mode, cfg.input_size[1:], cfg.crop_pct, cfg.interpolation))
    return sorted(found)


def check_pixels(image, size, crop_pct, crop_mode, interpolation):
    """Bit-equal to timm's plain pipeline, whose numbers times 255 are whole."""
    how = Preprocessing(
        size=size, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation, resize="pillow",
        mean=(0.1, 0.5, 0.99),
    )  # fmt: skip
    theirs = create_transform(
        (3, *size), is_training=False, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation,
        mean=how.mean, std=(1, 1, 1), normalize=False,
    )(image)  # fmt: skip
    assert torch.equal(eval_transform(how)(image), theirs), (size, crop_pct, crop_mode, interpolation, image.size)


def test_eval_pixels_of_every_record_are_timms():
    """All crop modes, sizes, crops and interpolations that occur in timm's records of classifiers."""
    combinations = records()
    assert len(combinations) > 80
    assert {mode for mode, *_ in combinations} >= {"center", "squash"}
    assert max(crop_pct for _, _, crop_pct, _ in combinations) > 1  # a black border
    for i, (crop_mode, size, crop_pct, interpolation) in enumerate(combinations):
        check_pixels(make_image(*((48, 32) if i % 2 else (24, 40))), size, crop_pct, crop_mode, interpolation)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(48, 48), (32, 56), (56, 32)])
@pytest.mark.parametrize("crop_pct", [0.8, 0.95, 1.0, 1.15])
def test_eval_pixels_are_timms_in_every_crop_mode(crop_mode, size, crop_pct):
    for image in ((160, 120), (64, 400), (16, 8), (57, 33)):
        check_pixels(make_image(*image), size, crop_pct, crop_mode, "bicubic")


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_the_fast_kernel_fills_the_same_border(crop_mode):
    image = make_image(120, 40)
    how = {"size": (40, 48), "crop_mode": crop_mode, "crop_pct": 0.9, "interpolation": "bilinear", "mean": (0.2,) * 3}
    exact, fast = (eval_transform(Preprocessing(**how, resize=kernel))(image).int() for kernel in ("pillow", "torch"))
    assert (fast - exact).abs().float().mean() < 0.05
    border = bool((exact[:, 0] == 51).all())
    assert border == bool((fast[:, 0] == 51).all()) == (crop_mode == "border")


def test_eval_by_hand():
    """Short side to floor(size / crop_pct), then the center."""
    image = make_image(160, 120)
    resized = image.resize((int(73 * 160 / 120), 73), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 64) / 2), round((73 - 64) / 2)
    expected = np.asarray(resized.crop((left, top, left + 64, top + 64)))
    ours = eval_transform(Preprocessing(size=64, resize="pillow"))(image)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("size", [(40, 32), (24, 24), (24, 60)])
def test_every_interpolation_works(interpolation, size):
    for crop_pct in (0.875, 1.0):
        how = Preprocessing(size=24, interpolation=interpolation, crop_pct=crop_pct)
        made = eval_transform(how)(make_image(*size))
        assert made.shape == (3, 24, 24)
        assert torch.equal(made, eval_transform(how)(np.array(make_image(*size))))


# --- training ---------------------------------------------------------------------------------------------------------


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
    AugmentConfig(rand_augment=policy)


def test_two_policies_are_refused():
    with pytest.raises(ValueError, match=r"trivial_augment=true and augment.rand_augment=rand-m7 contradict"):
        AugmentConfig(rand_augment="rand-m7", trivial_augment=True)


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
        AugmentConfig(rand_augment=policy)


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
        AugmentConfig(**options)


@pytest.mark.parametrize("change", [{"input_size": 20_000}, {"input_size": [100, 2_000_000]}, {"crop_pct": 0.001}])
def test_sizes_of_no_image_are_refused(change):
    with pytest.raises(ValueError, match=r"resizes images to .* pixels: at most 178,956,970 are possible"):
        Preprocessing.from_dict({**Preprocessing().to_dict(), **change})
    assert Preprocessing(size=8192).size == 8192
