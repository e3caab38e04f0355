"""data.py on tiny drawn images: same crops on all sides, true distances, a complete report. Nothing asserts speed."""

import itertools
import json
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.write import write_store
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import UserError
from scripts.benchmarks import data
from scripts.benchmarks.data_loaders import (
    Loader,
    Untimed,
    Work,
    make_small,
    own_dataset,
    own_loader,
    timm_loader,
    torchvision_loader,
)
from scripts.benchmarks.data_measure import Stream, distance, pixel_distance, profile, resized, resized_distance
from tests.conftest import ROOT

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the CPU time of other processes")
LARGE = 3  # index of the one image that a store with short side 400 reduces


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """2 classes of 6 smooth JPEGs, named so that timm orders them in another way (10 after 9)."""
    root = tmp_path_factory.mktemp("data") / "tree"
    for number in range(12):
        path = root / "ab"[number // 6] / f"{number % 6 + 7}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (5, 6, 3)).astype(np.uint8)
        size = (440, 420) if number == 0 else (90, 70 + number)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
    assert index_folder(root).key(LARGE) == "a/7.jpg"  # after 10, 11 and 12
    return root


def work_of(tree, *, train=True, recipe=None, size=32, batch=4):
    planned = data.plan(12, 12, passes=2, spare=2)
    requests = list(itertools.chain(*planned.batches))
    batches = [requests[at : at + batch] for at in range(0, len(requests), batch)]
    return Work(index_folder(tree), batches, size, train, recipe)


def images_of(loader, workers, batches=6):
    return torch.cat(list(itertools.islice(loader.open(workers, Untimed(workers)), batches)))


# --- what is compared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "images", "batch"), [(99, 300, 9), (12, 12, 12), (5, 12, 5), (1000, 300, 10)])
def test_a_pass_shows_each_image_as_often(count, images, batch):
    planned = data.plan(count, images, passes=2, spare=3)
    assert {len(requests) for requests in planned.batches} == {batch}
    assert len(planned.batches) * batch == 3 * planned.images + 3 * batch
    one_pass = list(itertools.chain(*planned.batches))[: planned.images]
    assert len(set(one_pass)) == planned.images  # no draw twice
    shown = Counter(i for _, i, _ in one_pass)
    assert len(shown) == min(count, images) == planned.epoch * batch
    assert len(set(shown.values())) == 1


def assert_near(images, expected):
    """Of the same crops, which another kernel resizes: a few levels, where another crop would be tens."""
    apart = (images.int() - expected.int()).abs()
    assert apart.max() <= 40
    assert apart.float().mean() < 0.1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pad", [False, True])
def test_timm_and_ddfnet_make_the_same_crops(tree, workers, pad):
    """Same images, same draws, same order, whatever the number of workers: so the comparison is one of equal work."""
    work = replace(work_of(tree), pad=pad)
    if pad:  # timm's is not asked to resize
        work = replace(work, index=index_folder(make_small(tree, tree.parent / f"small{workers}")))
    ours = images_of(own_loader("ours", work), workers)
    assert ours.shape == (24, 3, 32, 32)
    assert ours.dtype == torch.uint8
    theirs = images_of(timm_loader("timm", work), workers)
    assert torch.equal(theirs, ours) if pad else assert_near(theirs, ours) is None
    assert ours.flatten(1).unique(dim=0).shape[0] == 24  # the second epoch is drawn anew


def test_operations_are_applied_where_they_count(tree):
    """With the recipe timm's images are changed, and ddfnet's on the CPU; those left to the device are not."""
    work = work_of(tree, recipe=data.RECIPE)
    plain = images_of(own_loader("bare", work_of(tree)), 0)
    assert torch.equal(images_of(own_loader("device", work), 0), plain)
    for loader in (own_loader("cpu", work, on_device=False), timm_loader("timm", work)):
        changed = (images_of(loader, 0).int() - plain.int()).abs().flatten(1).float().mean(1) > 1
        assert 6 < changed.sum() <= 24


@pytest.mark.parametrize("workers", [0, 2])
def test_the_evaluation_gives_the_same_pixels(tree, workers, tmp_path):
    work = work_of(tree, train=False)
    ours = images_of(own_loader("ours", work), workers)
    assert_near(images_of(timm_loader("timm", work), workers), ours)
    for _ in range(2):  # filled, then read
        assert torch.equal(images_of(own_loader("cached", work, cache=tmp_path), workers), ours)


@pytest.mark.parametrize("train", [True, False])
def test_torchvision_makes_the_same_crops(tree, train):
    """Another resize of the same boxes: a few levels, where another crop would be tens."""
    work = work_of(tree, train=train)
    away = distance(torchvision_loader("torchvision", work), timm_loader("timm", work), 3)
    assert away["images"] == 12
    assert away["mean"] < 0.5
    assert away["max"] < 30


def test_seeding_a_peer_is_not_its_time(tree):
    untimed = Untimed(0)
    next(timm_loader("timm", work_of(tree)).open(0, untimed))
    assert untimed.ns() > 0


# --- distances --------------------------------------------------------------------------------------------------------


def test_pixel_distance():
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert pixel_distance([(image, image)]) == {"images": 1, "max": 0, "mean": 0, "psnr": None}
    away = pixel_distance([(image + 2, image), (image - 2, image), (image, image)])
    assert away["images"] == 3
    assert away["max"] == 2
    assert away["mean"] == pytest.approx(4 / 3)
    assert away["psnr"] == pytest.approx(20 * math.log10(255 / 2))
    assert pixel_distance([])["mean"] is None


def test_images_of_another_size_count_apart(tree, tmp_path):
    write_store(index_folder(tree), tmp_path / "store", Encoding(quality=95, short_side=400))
    work = work_of(tree)
    assert resized(work, tmp_path / "store") == [LARGE]
    ours, timm = own_loader("ours", work, tmp_path / "store"), timm_loader("timm", work)
    assert distance(ours, timm, 3, [LARGE])["images"] == 11
    assert 0 < distance(ours, timm, 3, [LARGE])["mean"] < 3
    away = resized_distance(work, tmp_path / "store", [LARGE])
    assert away["images"] == 1
    assert 0 < away["mean"] < 3


# --- times ------------------------------------------------------------------------------------------------------------


class _Busy(Dataset):
    """Each item takes 10 ms of CPU."""

    def __len__(self):
        return 1000

    def __getitem__(self, i):
        end = time.process_time() + 0.010
        while time.process_time() < end:
            pass
        return torch.zeros(3, 2, 2, dtype=torch.uint8), 0


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=needs_linux)])
def test_the_time_of_all_processes_counts(workers):
    """Clocks of CPU time, not of the day: what was computed is there, however busy the machine."""
    batches = [[(0, i, 0) for i in range(2)]]

    def open_busy(count, untimed):
        return (images for images, _ in DataLoader(_Busy(), 2, num_workers=count))

    stream = Stream(Loader("busy", Work(None, batches, 2, True), open_busy), workers)
    assert len(stream.workers) == workers
    taken = sum(stream.turn() for _ in range(6))
    assert taken >= 6 * 2 * 0.010e9
    assert (stream.worker_mib() is None) == (workers == 0)
    stream.untimed.counters[0] = 5_000_000
    assert stream.settle() < 0  # what is not to be counted is taken off
    stream.close()


def test_dali_makes_the_same_crops(tree):
    """But for its own resize; a crop or flip that is another one would be tens of levels away on average."""
    pytest.importorskip("nvidia.dali")
    from scripts.benchmarks.data_dali import dali_loader

    work = work_of(tree)
    away = (images_of(dali_loader("dali", work), 0).int() - images_of(timm_loader("timm", work), 0).int()).abs()
    assert away.float().mean() < 2
    work = work_of(tree, train=False)  # its center may be a pixel beside timm's
    assert images_of(dali_loader("dali", work), 0).shape == images_of(timm_loader("timm", work), 0).shape


def test_the_profile_has_the_steps(tree, tmp_path):
    work = work_of(tree, recipe=data.RECIPE)
    steps = {step["step"]: step["ms"] for step in profile(own_dataset(work), work, 2)}
    assert {"read the file", "decode", "draw", "crop, resize, flip", "draw the operations", "the rest"} == set(steps)
    assert all(ms > 0 for ms in steps.values())
    write_store(index_folder(tree), tmp_path / "store", Encoding())
    steps = {step["step"]: step["ms"] for step in profile(own_dataset(work, tmp_path / "store"), work, 2)}
    assert {"read and cut the region", "decode", "crop, resize, flip"} <= set(steps)
    work = work_of(tree, train=False)
    steps = {step["step"] for step in profile(own_dataset(work), work, 2)}
    assert {"read the file", "decode", "resize, crop", "the rest"} == steps


# --- the command ------------------------------------------------------------------------------------------------------

PEER = ("ms", "ms_range", "first_batch_ms", "worker_mib")


@pytest.fixture(scope="module")
def report(tree, tmp_path_factory):
    """(workers, report, printed text) of a run."""
    workers = int(sys.platform == "linux")
    file = tmp_path_factory.mktemp("report") / "data.json"
    options = ["--passes", "2", "--images", "12", "--workers", str(workers), "--json", str(file)]
    script = str(ROOT / "scripts" / "benchmarks" / "data.py")
    done = subprocess.run([sys.executable, script, str(tree), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return workers, json.loads(file.read_text()), done.stdout


def test_the_report_is_complete(report):
    workers, content, _ = report
    assert [row["name"] for row in content["rows"]] == [
        "plain",
        "store_keep",
        "store_400",
        "eval",
        "eval_cached",
        "cifar",
    ]
    for row in content["rows"]:
        parts = [row] if row["name"].startswith("eval") else [row, row["cpu"], row["crop_only"]]
        for part in parts:
            for peer in ("timm", "ours", *["torchvision"] * ("torchvision_ms" in part)):
                assert {f"{peer}_{key}" for key in PEER} <= set(part)
                low, high = part[f"{peer}_ms_range"]
                assert 0 < low <= part[f"{peer}_ms"] <= high
                # Copies from memory or from a cache need no workers, but for operations of Pillow.
                quick = row["name"] == "eval_cached" or (row["name"] == "cifar" and part is not row["cpu"])
                without = peer == "ours" and quick
                assert (part[f"{peer}_worker_mib"] is None) == (workers == 0 or without)
            low, high = part["ratio_range"]
            assert low <= part["ratio"] <= high
        assert parts[-1]["distance"]["images"] > 0  # operations are drawn by each side for itself
        assert ["distance" in part for part in parts] == [False] * (len(parts) - 1) + [True]
        assert row["target"] == data.TARGETS[row["name"]]
        assert row["met"] == (row["ratio"] >= row["target"])
        assert sum(step["ms"] for step in row["profile"]) > 0
    rows = {row["name"]: row for row in content["rows"]}
    assert [name for name, row in rows.items() if "resized_distance" in row] == ["store_400"]
    assert rows["cifar"]["crop_only"]["distance"]["max"] == 0
    assert rows["eval"]["distance"] == rows["eval_cached"]["distance"]
    assert all("torchvision_ms" in rows[name].get("crop_only", rows[name]) for name in ("plain", "eval", "cifar"))
    assert {"cpu", "torch", "timm", "pillow", "libjpeg_turbo", "decoder", "command"} <= set(content["environment"])
    assert content["settings"] == {"workers": workers, "passes": 2, "images": 12, "recipe": data.RECIPE}


def test_the_ratio_is_that_of_the_times(report):
    for row in report[1]["rows"]:  # two passes: their median is their mean
        low, high = row["ratio_range"]
        assert row["ratio"] == pytest.approx((low + high) / 2)
        assert row["timm_ms_range"][0] / row["ours_ms_range"][1] <= low
        assert high <= row["timm_ms_range"][1] / row["ours_ms_range"][0]


def test_the_table(report):
    lines = [line for line in report[2].splitlines() if line.startswith("|")]
    for kind in (", device", ", cpu", "crop, flip"):
        assert sum(kind in line for line in lines) == 4
    assert sum(": met" in line or ": missed" in line for line in lines) == 6
    assert len([line for line in report[2].splitlines() if "in ddfnet's reader" in line]) == 6


def test_a_peer_that_cannot_read_the_images_is_left_out(tree, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("Unsupported\nJPEG")

    monkeypatch.setattr(data.torchvision_loader.__globals__["torchvision"].io, "decode_image", refuse)
    options = ["--passes", "1", "--images", "8", "--workers", "0", "--json", str(tmp_path / "data.json")]
    assert data.main([str(tree), "--cifar", str(tree), *options]) == 0
    rows = json.loads((tmp_path / "data.json").read_text())["rows"]
    failed = [row.get("crop_only", row).get("torchvision_failed") for row in rows]
    reason = "RuntimeError: Unsupported"
    assert failed == [reason, None, None, reason, None, reason]
    assert "RuntimeError: Unsupported" in capsys.readouterr().out


def test_bad_arguments(tree, tmp_path):
    with pytest.raises(UserError, match="name a file"):
        data.main([str(tree), "--json", str(tmp_path)])
    with pytest.raises(UserError, match="does not exist"):
        data.main([str(tmp_path / "none"), "--passes", "1"])
    with pytest.raises(SystemExit):
        data.main([str(tree), "--passes", "0"])
