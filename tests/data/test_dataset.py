import io
import os
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin
from synthetic_images import draw

from ddfnet.data.augment import AugmentConfig, train_transform
from ddfnet.data.dataset import EvalDataset, TrainDataset, open_rgb
from ddfnet.data.preprocessing import eval_transform
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import DataError

POLICIES = [None, "rand-m7-mstd0.5-inc1", "augmix-m5-w2", "original-mstd0.5", "3a", "trivial"]


def dataset(index, small, seed=0, policy="rand-m7-mstd0.5-inc1"):
    chosen = {"trivial_augment": True} if policy == "trivial" else {"rand_augment": policy}
    return TrainDataset(index, train_transform(small, AugmentConfig(**chosen)), seed=seed)


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


def test_every_generator_that_the_transforms_use_is_keyed(index):
    def draw_all(image):
        return random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2)

    draws = TrainDataset(index, draw_all, seed=0)
    first, second = draws[(0, 3, 0)][0], draws[(0, 3, 0)][0]
    assert first[:3] == second[:3]
    assert torch.equal(first[3], second[3])
    third = draws[(0, 4, 0)][0]
    assert all(a != b for a, b in zip(first[:3], third[:3], strict=True))
    assert not torch.equal(first[3], third[3])


def test_draws_are_pinned(index):
    """Other draws for the first showing of an image would change resumed runs; those of repeats are others."""

    def draw_all(image):
        return random.random(), np.random.rand(), torch.rand(1).item()

    draws = TrainDataset(index, draw_all, seed=11)
    pinned = {
        (2, 7, 0): (0.3521992785315222, 0.9776445250726562, 0.6654453873634338),
        (0, 3, 0): (0.6995687810553616, 0.3642000490973265, 0.5679237842559814),
    }
    for request, expected in pinned.items():
        assert draws[request][0] == pytest.approx(expected, rel=1e-7)
    assert len({draws[(2, 7, repeat)][0] for repeat in range(5)}) == 5


def test_leaves_the_callers_generators_alone(index, small):
    before = global_states()
    dataset(index, small)[(0, 0, 0)]
    EvalDataset(index, eval_transform(small))[0]
    assert global_states() == before


def test_restores_the_generators_after_a_failing_transform(index):
    def fail(image):
        random.random()
        raise RuntimeError("defect")

    before = global_states()
    with pytest.raises(RuntimeError, match="defect"):
        TrainDataset(index, fail, seed=0)[(0, 0, 0)]
    assert global_states() == before


def break_file(index, i, content=b"not an image"):
    with open(index.path(i), "wb") as file:
        file.write(content)


def test_broken_training_image_is_replaced_the_same_way_every_time(index, small):
    break_file(index, 4)
    data = dataset(index, small)
    image, _, i, problem = data[(0, 4, 0)]
    assert i == 4
    assert "UnidentifiedImageError" in problem
    assert torch.equal(image, dataset(index, small)[(0, 4, 0)][0])
    shown = TrainDataset(index, np.asarray, seed=0)
    assert np.array_equal(shown[(0, 4, 0)][0], shown[(0, 4, 2)][0])  # repeats share the stand-in
    stand_ins = {data._replacement(epoch, 4, 1) for epoch in range(30)}
    assert len(stand_ins) > 5
    assert 4 not in stand_ins


def test_a_replacement_brings_its_own_label(tmp_path, small):
    for name in "abcdef":
        draw(tmp_path / name / "0.png", ord(name))
    index = index_folder(tmp_path)
    shown = TrainDataset(index, lambda image: image, seed=0)
    originals = [np.asarray(open_rgb(index.path(i))) for i in range(6)]
    break_file(index, 2)
    for epoch in range(8):
        image, label, _, problem = shown[(epoch, 2, 0)]
        assert problem
        assert label != 2
        assert np.array_equal(np.asarray(image), originals[label])


def test_broken_replacements_are_replaced_too(index, small):
    data = dataset(index, small)
    break_file(index, 4)
    break_file(index, data._replacement(0, 4, 1))
    assert data[(0, 4, 0)][3]


def test_gives_up_when_everything_is_broken(index, small):
    for i in range(len(index)):
        break_file(index, i)
    with pytest.raises(DataError, match=r"004\.png is broken .*check_data\.py"):
        dataset(index, small)[(0, 4, 0)]


def test_a_defect_in_a_transform_is_not_taken_for_a_broken_image(index):
    with pytest.raises(ZeroDivisionError):
        TrainDataset(index, lambda image: 1 / 0, seed=0)[(0, 0, 0)]


def test_evaluation_refuses_a_broken_image(index, small):
    data = EvalDataset(index, eval_transform(small))
    image, label, i = data[17]
    assert (image.dtype, tuple(image.shape), label, i) == (torch.uint8, (3, 24, 24), 2, 17)
    break_file(index, 17)
    with pytest.raises(DataError, match=r"eel.005\.png is broken \(UnidentifiedImageError"):
        data[17]


def test_a_missing_file_is_a_broken_image(index, small):
    os.remove(index.path(3))
    assert "FileNotFoundError" in dataset(index, small)[(0, 3, 0)][3]
    with pytest.raises(DataError, match="FileNotFoundError"):
        EvalDataset(index, eval_transform(small))[3]


# --- decoding ---------------------------------------------------------------------------------------------------------

GRADIENT = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
COLORS = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=2)


def modes():
    rgb = Image.fromarray(COLORS)
    return {
        "rgb.png": rgb,
        "gray.png": Image.fromarray(GRADIENT),
        "gray.jpg": Image.fromarray(GRADIENT),
        "bit.png": Image.fromarray(GRADIENT).convert("1"),
        "palette.png": rgb.quantize(32),
        "palette.gif": rgb.quantize(32),
        "rgba.png": rgb.convert("RGBA"),
        "la.png": Image.fromarray(GRADIENT).convert("LA"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "cmyk.tif": rgb.convert("CMYK"),
        "rgb.webp": rgb,
        "rgb.bmp": rgb,
        "rgb.ppm": rgb,
    }


@pytest.mark.parametrize("name", list(modes()))
def test_all_modes_become_rgb_as_in_timm(tmp_path, name):
    modes()[name].save(tmp_path / name)
    image = open_rgb(str(tmp_path / name))
    assert (image.mode, image.size) == ("RGB", (8, 8))
    with Image.open(tmp_path / name) as theirs:
        assert np.array_equal(np.asarray(image), np.asarray(theirs.convert("RGB")))
    assert np.asarray(image).std() > 20


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_gray_keeps_its_upper_bits(tmp_path, name):
    deep = GRADIENT.astype(np.uint16) * 256 + 77
    if name == "deep.pgm":  # older versions of Pillow read 16-bit PGM but do not write it
        (tmp_path / name).write_bytes(b"P5\n8 8\n65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(tmp_path / name)
    assert np.array_equal(np.asarray(open_rgb(str(tmp_path / name)))[..., 1], GRADIENT)


def test_png_named_jpeg_decodes(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "x.JPEG", format="PNG")
    assert np.array_equal(np.asarray(open_rgb(str(tmp_path / "x.JPEG"))), COLORS)


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLORS[:4]).save(tmp_path / "x.png", exif=exif)
    assert open_rgb(str(tmp_path / "x.png")).size == (8, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_files_are_errors(tmp_path, suffix, share):
    path = tmp_path / f"x.{suffix}"
    draw(path, 1, size=(200, 160))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises((OSError, SyntaxError)):
        open_rgb(str(path))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_reasons_are_one_line_without_the_path(index, small):
    break_file(index, 0)
    os.remove(index.path(1))
    reasons = [dataset(index, small)[(0, i, 0)][3] for i in range(2)]
    assert reasons[0] == "UnidentifiedImageError: not an image, or its header is damaged"
    assert reasons[1] == "FileNotFoundError: No such file or directory"


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"<html>404</html>"])
def test_non_images_are_errors(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(OSError):  # noqa: PT011 - Pillow's texts vary
        open_rgb(str(tmp_path / "x.jpg"))


def test_pillows_metadata_warnings_are_silenced(tmp_path):
    palette = Image.fromarray(COLORS).quantize(32)
    info = PngImagePlugin.PngInfo()
    palette.save(tmp_path / "p.png", transparency=bytes(range(32)), pnginfo=info)
    buffer = io.BytesIO()
    Image.fromarray(COLORS).save(buffer, "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12")
    (tmp_path / "e.jpg").write_bytes(buffer.getvalue())
    with warnings.catch_warnings(record=True) as loud:
        warnings.simplefilter("always")
        Image.open(tmp_path / "p.png").convert("RGB")
    assert loud, "the case must warn without us"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_rgb(str(tmp_path / "p.png"))
        open_rgb(str(tmp_path / "e.jpg"))


def test_files_are_closed_at_once(tmp_path):
    draw(tmp_path / "x.png", 1)
    draw(tmp_path / "y.jpg", 2)
    (tmp_path / "z.jpg").write_bytes(b"junk")
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("needs /proc")
    kept = [open_rgb(str(tmp_path / name)) for name in ("x.png", "y.jpg")]
    with pytest.raises(OSError, match="cannot identify"):
        open_rgb(str(tmp_path / "z.jpg"))
    assert len(os.listdir("/proc/self/fd")) == opened
    assert [image.size for image in kept] == [(40, 32)] * 2
