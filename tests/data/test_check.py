import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw, make_tree

from ddfnet.data.check import check_tree
from tests.conftest import exit_code

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_data.py"


@pytest.fixture(scope="module")
def main():
    script = runpy.run_path(str(SCRIPT))
    return lambda arguments: exit_code(script["main"], arguments)


@pytest.fixture
def root(tmp_path):
    make_tree(tmp_path / "train", per_class=5)
    make_tree(tmp_path / "val", per_class=2)
    return tmp_path


def check(main, capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_tree(main, capsys, root, workers):
    code, out, _ = check(main, capsys, root, "--workers", workers)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["train", "3", "15", "5", "5", "0"] in rows
    assert ["val", "3", "6", "2", "2", "0"] in rows
    assert out.endswith("no problems found\n")


def test_script_runs_from_anywhere(root):
    (root / "val" / "cat" / "000.png").write_bytes(b"junk")
    done = subprocess.run([sys.executable, SCRIPT, ".", "--workers", "1"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1, done.stderr
    assert "1 problem found" in done.stdout


def test_a_single_folder(main, capsys, root):
    code, out, _ = check(main, capsys, root / "train", "--workers", 1)
    assert code == 0
    assert ["images", "3", "15", "5", "5", "0"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_corrupt_file_is_named(main, capsys, root, workers):
    (root / "train" / "cat" / "000.png").write_bytes(b"junk")
    good = (root / "val" / "dog" / "001.png").read_bytes()
    (root / "val" / "dog" / "001.png").write_bytes(good[: len(good) // 2])
    (root / "val" / "eel" / "gone.png").symlink_to(root / "nowhere.png")
    code, out, _ = check(main, capsys, root, "--workers", workers)
    assert code == 1
    assert f"{root}/train/cat/000.png is corrupt (UnidentifiedImageError" in out
    assert f"{root}/val/dog/001.png is corrupt (" in out
    assert f"{root}/val/eel/gone.png is corrupt (FileNotFoundError" in out
    assert "3 problems found" in out


def test_class_disagreement_and_empty_classes(main, capsys, root):
    os.rename(root / "val" / "eel", root / "val" / "fox")
    (root / "train" / "gnu").mkdir()
    code, out, _ = check(main, capsys, root, "--workers", 1)
    assert code == 1
    assert "train: no images in 1 class: gnu" in out
    assert "val: without 2 classes of train: eel, gnu" in out
    assert "val: 1 class not in train: fox" in out


def test_flat_validation_folder_is_a_problem_beside_a_checked_train(main, capsys, root):
    for name in ("cat", "dog", "eel"):
        for file in (root / "val" / name).iterdir():
            file.rename(root / "val" / f"{name}{file.name}")
        (root / "val" / name).rmdir()
    code, out, _ = check(main, capsys, root, "--workers", 1)
    assert code == 1
    assert "holds 6 images directly" in out
    assert ["train", "3", "15", "5", "5", "0"] in [line.split() for line in out.splitlines()]


def test_a_missing_split_is_a_problem(main, capsys, root):
    os.rename(root / "val", root / "validation")
    code, out, _ = check(main, capsys, root, "--workers", 1)
    assert code == 1
    assert "has a folder train but not the other one" in out


def test_unusual_files_are_remarks_not_problems(main, capsys, root):
    cat = root / "train" / "cat"
    Image.new("CMYK", (8, 8)).save(cat / "cmyk.jpg")
    Image.new("RGB", (8, 8)).save(cat / "really_png.JPEG", format="PNG")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(cat / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8)).save(cat / "turned.jpg", exif=exif)
    code, out, _ = check(main, capsys, root, "--workers", 1)
    assert code == 0
    for kind in ("CMYK colors", "PNG file named .jpeg", "16-bit gray", "EXIF rotation"):
        assert f"remark: train: 1 x {kind}" in out


def test_imagenet_names_and_counts(main, capsys, tmp_path):
    draw(tmp_path / "train" / "n01440764" / "a.JPEG", 1)
    draw(tmp_path / "train" / "cat" / "a.JPEG", 1)
    draw(tmp_path / "val" / "n01440764" / "a.JPEG", 1)
    draw(tmp_path / "val" / "cat" / "a.JPEG", 1)
    code, out, _ = check(main, capsys, tmp_path, "--imagenet", "--workers", 1)
    assert code == 1
    assert "train: without 999 classes of ImageNet-1k: n01443537," in out
    assert "val: 1 class not in ImageNet-1k: cat" in out
    assert "train: 2 images, ImageNet-1k has 1,281,167" in out
    assert "val: 2 images, ImageNet-1k has 50,000" in out


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_bad_usage_is_exit_code_2(main, capsys, tmp_path, what):
    target = tmp_path / what
    if what == "file":
        target.write_text("x")
    if what == "empty":
        target.mkdir()
    code, out, err = check(main, capsys, target)
    assert code == 2
    assert str(target) in err
    assert out == ""


def test_unknown_option_is_exit_code_2(main, capsys):
    assert main(["--frobnicate"]) == 2


def test_progress_reaches_the_total(root):
    seen = []
    check_tree(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(15, 15), (6, 6)]
