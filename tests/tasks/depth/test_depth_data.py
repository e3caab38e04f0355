"""Readers, low resolution, crops, and who reads what."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.data import loader
from ddfnet.data.sampler import TrainSampler
from ddfnet.tasks.depth.config import DepthData
from ddfnet.tasks.depth.data import (
    DepthReader,
    denormalize_guidance,
    depth_sample,
    fill_missing,
    normalize_guidance,
    valid_pixels,
    with_normal_guidance,
)
from ddfnet.tasks.depth.pairs import FolderPairs, NYUPairs
from ddfnet.tasks.depth.synthetic import draw_scene, render_scenes
from ddfnet.utils.errors import DataError
from scripts import make_data
from tests.conftest import exit_code
from tests.tasks.depth.conftest import NYU_HEIGHT, NYU_PAIRS, NYU_WIDTH

CPU = torch.device("cpu")


def train_reader(pairs, *, crop=16, border=0, hflip=0.5, seed=3):
    return DepthReader(pairs, DepthData(root="", factor=4, crop=crop, border=border), hflip=hflip, seed=seed)


def train_batches(pairs, *, workers, **options):
    reader = train_reader(pairs, **options)
    return loader.train_batches(reader.read, sampler(10), with_normal_guidance, device=CPU, workers=workers)


def eval_batches(pairs, **options):
    settings = {"batch_size": 2, "rank": 0, "world_size": 1, "device": CPU, "workers": 0, **options}
    reader = DepthReader(pairs, DepthData(root="", factor=4))
    return loader.eval_batches(reader.read_eval, len(pairs), with_normal_guidance, **settings)


def sampler(length, **options):
    settings = {"global_batch": 2, "rank": 0, "world_size": 1, "accumulation": 1, "seed": 3, "start_step": 0}
    return TrainSampler(length=length, end_step=4, **{**settings, **options})


# --- the labeled NYU file --------------------------------------------------------------------------------------------


def test_nyu_is_turned_the_right_way(nyu_file):
    pairs = NYUPairs(nyu_file, "val")
    rgb, depth = pairs.read(2)
    assert rgb.shape == (NYU_HEIGHT, NYU_WIDTH, 3)
    assert depth.shape == (NYU_HEIGHT, NYU_WIDTH)
    assert (rgb.dtype, depth.dtype) == (np.uint8, np.float32)
    y, x = np.mgrid[:NYU_HEIGHT, :NYU_WIDTH]
    assert (rgb[..., 0] == 1002 % 256).all()
    assert (rgb[..., 1] == x).all()
    assert (rgb[..., 2] == y).all()
    assert (depth == 1 + x + 100 * y).all()
    assert rgb.flags.c_contiguous
    assert depth.flags.c_contiguous


def test_nyu_split(nyu_file):
    train, val = NYUPairs(nyu_file, "train"), NYUPairs(nyu_file, "val")
    assert (len(train), len(val)) == (1000, NYU_PAIRS - 1000)
    assert train.read(999)[0][0, 0, 0] == 999 % 256
    assert val.name(0).endswith("[1000]")


def test_nyu_handles_are_opened_by_the_process_that_reads(nyu_file):
    pairs = NYUPairs(nyu_file, "val")
    assert pairs._file is None
    pairs.read(0)  # a handle of this process, which the workers must not use
    batches = eval_batches(pairs, workers=2)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]


def test_nyu_files_that_are_none(tmp_path, nyu_file):
    h5py = pytest.importorskip("h5py")
    with pytest.raises(DataError, match=r"data\.root=.*absent\.mat is no file.*data\.format=folder"):
        NYUPairs(tmp_path / "absent.mat", "train")
    (tmp_path / "text.mat").write_text("MATLAB 5.0")
    with pytest.raises(DataError, match=r"text\.mat is not an HDF5"):
        NYUPairs(tmp_path / "text.mat", "train")
    for name, images, depths, match in (
        ("few.mat", (3, 3, 8, 6), (3, 8, 6), "holds 3 pairs.*1449"),
        ("turned.mat", (3, 3, 8, 6), (3, 6, 8), r"depths \(3, 6, 8\)"),
        ("empty.mat", (3, 3, 8, 6), None, "depths None"),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            file["images"] = np.zeros(images, np.uint8)
            if depths is not None:
                file["depths"] = np.zeros(depths, np.float32)
        with pytest.raises(DataError, match=match):
            NYUPairs(tmp_path / name, "train")


# --- folders ----------------------------------------------------------------------------------------------------------


def write_pair(root, name, depth, rgb=None, suffix=".png"):
    for kind in ("rgb", "depth"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    rgb = np.zeros((*depth.shape, 3), np.uint8) if rgb is None else rgb
    Image.fromarray(rgb).save(root / "rgb" / f"{name}{suffix}")
    Image.fromarray(depth).save(root / "depth" / f"{name}.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_folders(tmp_path, dtype):
    depth = np.arange(48, dtype=dtype).reshape(6, 8) * (1 if dtype is np.uint8 else 1000)
    write_pair(tmp_path, "b", depth)
    write_pair(tmp_path, "a", depth[::-1], suffix=".jpg")
    pairs = FolderPairs(tmp_path, depth_scale=0.002)
    assert len(pairs) == 2
    assert pairs.name(0).endswith("rgb/a.jpg")
    rgb, meters = pairs.read(1)
    assert rgb.shape == (6, 8, 3)
    np.testing.assert_allclose(meters, depth * 0.002, rtol=1e-6)


def test_folders_that_are_incomplete(tmp_path):
    def fails(match):
        with pytest.raises(DataError, match=match):
            FolderPairs(tmp_path, depth_scale=0.001).read(0)

    fails("rgb is missing: data.format=folder needs")
    write_pair(tmp_path, "a", np.ones((4, 4), np.uint8))
    (tmp_path / "depth" / "a.png").rename(tmp_path / "depth" / "c.png")
    fails(r"rgb has a and .*depth has not \(2 without a partner\)")
    (tmp_path / "depth" / "c.png").unlink()
    (tmp_path / "rgb" / "a.png").unlink()
    fails("hold no images")
    write_pair(tmp_path, "a", np.ones((4, 4), np.uint8))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "depth" / "a.png")
    fails(r"depth/a\.png is of the kind RGB")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "depth" / "a.png")
    fails(r"a\.png has 5 x 4 pixels and its image 4 x 4")
    (tmp_path / "depth" / "a.png").write_bytes(b"nothing")
    fails(r"depth/a\.png is corrupt")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb" / "a.jpg")
    fails(r"both a\.jpg and a\.png")


# --- one sample -------------------------------------------------------------------------------------------------------


def test_low_resolution_keeps_every_fourth_pixel():
    depth = np.arange(1, 97, dtype=np.float32).reshape(8, 12)
    sample = depth_sample(np.zeros((8, 12, 3), np.uint8), depth, depth > 0, factor=4, phase=1)
    assert sample["low"].tolist() == [[[14, 18, 22], [62, 66, 70]]]
    assert (sample["depth"][0] == depth).all()


def test_padding_is_never_valid():
    depth = np.arange(1, 36, dtype=np.float32).reshape(5, 7)
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    sample = depth_sample(rgb, depth, depth > 0, factor=4, phase=3)
    assert sample["guidance"].shape == (3, 8, 8)
    assert sample["depth"].shape == sample["valid"].shape == (1, 8, 8)
    assert sample["valid"].sum() == 35
    assert sample["valid"][0, :5, :7].all()
    assert (sample["guidance"][:, 7, 7] == rgb[4, 6]).all()
    assert sample["low"].tolist() == [[[25, 28], [32, 35]]]  # pixels (3, 3), (3, 6), (4, 3), (4, 6)


def test_holes_are_filled_from_their_rims():
    depth = np.array([[2, 0, 0, 0, 6], [2, 0, 0, 0, 6], [2, 0, 0, 0, 6]], np.float32)
    assert fill_missing(depth).tolist() == [[2, 2, 4, 6, 6]] * 3
    corner = np.array([[0, 1], [3, 0]], np.float32)
    assert fill_missing(corner).tolist() == [[2, 1], [3, 2]]
    assert (fill_missing(np.zeros((3, 4), np.float32)) == 0).all()
    whole = np.ones((2, 2), np.float32)
    assert fill_missing(whole) is not whole


def test_valid_pixels_leave_border_and_holes_out():
    depth = np.ones((6, 7), np.float32)
    depth[2, 3] = 0
    valid = valid_pixels(depth, 2)
    assert valid.sum() == 2 * 3 - 1
    assert not valid_pixels(depth, 3).any()
    assert valid_pixels(depth, 0).sum() == 41


def test_nan_and_negative_depth_is_no_measurement(nyu_file, tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "nan.mat"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((1001, 3, 2, 2), np.uint8)
        file["depths"] = np.tile(np.array([[np.nan, -1], [np.inf, 2]], np.float32), (1001, 1, 1))
    assert NYUPairs(path, "val").read(0)[1].tolist() == [[0, 0], [0, 2]]


def test_normalization_has_an_inverse():
    guidance = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    normal = normalize_guidance(guidance)
    assert normal[0, :, 15, 15].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, 0.594 / 0.225])
    torch.testing.assert_close(denormalize_guidance(normal), guidance / 255)


# --- training crops ---------------------------------------------------------------------------------------------------


def test_crops_depend_on_seed_epoch_and_image_alone(scene_tree):
    pairs = FolderPairs(scene_tree / "train", depth_scale=0.001)
    one, again = train_reader(pairs), train_reader(pairs)
    one.crop((0, 5, 0)), np.random.seed(1)
    a, b = one.crop((2, 3, 0)), again.crop((2, 3, 0))
    assert all((a[key] == b[key]).all() for key in a)
    others = [train_reader(pairs, seed=4).crop((2, 3, 0)), one.crop((3, 3, 0))]
    assert all((a["guidance"] != other["guidance"]).any() for other in others)


def test_crop_flip_and_mask_move_together(nyu_file):
    """In the file, green is x, blue is y and depth 1 + x + 100 y: every crop must keep that."""
    reader = train_reader(NYUPairs(nyu_file, "train"), border=3)
    flips = 0
    for epoch in range(20):
        sample = reader.crop((epoch, 0, 0))
        x, y = sample["guidance"][1:].astype(int)
        assert (sample["depth"][0] == 1 + x + 100 * y).all()
        assert (sample["low"][0] == sample["depth"][0, 1::4, 1::4]).all()
        inside = (x >= 3) & (x < NYU_WIDTH - 3) & (y >= 3) & (y < NYU_HEIGHT - 3)
        assert (sample["valid"][0] == inside).all()
        flips += x[0, 0] > x[0, 1]
    assert 4 <= flips <= 16
    assert all(train_reader(reader.pairs, hflip=0.0).crop((e, 0, 0))["guidance"][1, 0, 0] < 33 for e in range(9))


def test_batches_do_not_depend_on_workers(scene_tree):
    pairs = FolderPairs(scene_tree / "train", depth_scale=0.001)
    streams = [list(train_batches(pairs, workers=workers)) for workers in (0, 2)]
    assert len(streams[0]) == len(streams[1]) == 4
    for a, b in zip(*streams, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("low", "guidance", "depth", "valid", "index"))
    assert streams[0][0]["guidance"].shape == (2, 3, 16, 16)
    assert streams[0][0]["low"].shape == (2, 1, 4, 4)


def test_an_image_below_the_crop_is_named(scene_tree):
    pairs = FolderPairs(scene_tree / "train", depth_scale=0.001)
    for workers in (0, 1):
        batches = train_batches(pairs, crop=64, workers=workers)
        with pytest.raises(DataError, match=r"png has 48 x 48 pixels, less than data\.crop=64: lower data\.crop"):
            next(batches)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_processes_share_the_images(scene_tree):
    pairs = FolderPairs(scene_tree / "val", depth_scale=0.001)
    seen = [batch["index"].tolist() for rank in range(2) for batch in eval_batches(pairs, rank=rank, world_size=2)]
    assert seen == [[0, 2], [4], [1, 3]]
    twice = eval_batches(pairs)
    assert [b["index"].tolist() for b in twice] == [b["index"].tolist() for b in twice]


def test_images_of_equal_size_make_a_batch(tmp_path):
    for name, shape in (("a", (8, 8)), ("b", (8, 9)), ("c", (7, 8)), ("d", (6, 12))):
        write_pair(tmp_path, name, np.ones(shape, np.uint8))
    batches = list(eval_batches(FolderPairs(tmp_path, depth_scale=1.0), batch_size=4))
    assert [batch["index"].tolist() for batch in batches] == [[0, 2], [1, 3]]  # 8 x 8 and 8 x 12 when padded
    assert batches[0]["valid"].sum((1, 2, 3)).tolist() == [64, 56]
    last = with_normal_guidance({"guidance": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, channels_last=True)
    assert last["guidance"].is_contiguous(memory_format=torch.channels_last)


def test_a_corrupt_image_is_named(tmp_path):
    write_pair(tmp_path, "a", np.ones((8, 8), np.uint8))
    (tmp_path / "depth" / "a.png").write_bytes(b"nothing")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"depth/a\.png is corrupt"):
            list(eval_batches(FolderPairs(tmp_path, depth_scale=1.0), workers=workers))


# --- synthetic scenes -------------------------------------------------------------------------------------------------


def test_scenes_are_exact(scene_tree):
    rgb, depth = draw_scene(np.random.default_rng((0, 0, 3)), 48)
    read_rgb, read_depth = FolderPairs(scene_tree / "train", depth_scale=0.001).read(3)
    assert (read_rgb == rgb).all()
    assert np.abs(read_depth - depth).max() < 0.0006
    assert depth.min() > 0.5
    assert depth.max() < 60
    steps = np.abs(np.diff(depth, axis=1)) / depth[:, 1:]
    assert (steps > 0.1).sum() > 40, "edges of depth"


def test_scenes_are_kept(scene_tree, tmp_path):
    assert render_scenes(scene_tree, train=10, val=5, size=48) == {"train": 10, "val": 5}
    with pytest.raises(DataError, match="was made with"):
        render_scenes(scene_tree, train=11, val=5, size=48)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"was not made by make_data\.py scenes"):
        render_scenes(tmp_path)
    with pytest.raises(ValueError, match="size must be at least 16, got 8"):
        render_scenes(tmp_path / "new", size=8)
    render_scenes(tmp_path / "new", train=1, val=1, size=16)
    (tmp_path / "new" / "val" / "depth" / "0000.png").unlink()
    with pytest.raises(DataError, match="incomplete"):
        render_scenes(tmp_path / "new", train=1, val=1, size=16)


def test_scenes_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "scenes"
    command = ["scenes", out, "--train", "2", "--val", "1", "--size", "32", "--seed", "5"]
    assert exit_code(make_data.main, command) == 0
    assert "2 training and 1 validation scenes" in capsys.readouterr().out
    assert json.loads((out / "scenes.json").read_text())["parameters"]["seed"] == 5
    assert not [path for path in tmp_path.iterdir() if path != out]
    assert exit_code(make_data.main, ["scenes", out, "--size", "64"]) == 2
    assert "was made with" in capsys.readouterr().err
