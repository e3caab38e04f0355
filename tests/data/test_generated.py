import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddfnet.data.generated import render_digits
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import DataError
from tests.conftest import exit_code

pytest.importorskip("sklearn")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_data.py"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "digits"
    render_digits(out)
    return out


def test_all_images_of_all_digits_stratified(digits):
    train, val = index_folder(digits / "train"), index_folder(digits / "val")
    assert train.classes == val.classes == [str(digit) for digit in range(10)]
    assert len(train) + len(val) == 1797
    in_train, in_val = np.bincount(train.labels), np.bincount(val.labels)
    assert np.abs(in_val / (in_train + in_val) - 0.2).max() < 0.005


def test_images_are_gray_upscaled_and_apart(digits):
    train, val = index_folder(digits / "train"), index_folder(digits / "val")
    names = [{Path(index.name(i)).name for i in range(len(index))} for index in (train, val)]
    assert not names[0] & names[1]
    with Image.open(train.name(0)) as image:
        assert (image.mode, image.size) == ("L", (32, 32))
        assert np.asarray(image).std() > 30


def test_pixels_are_the_digits(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    path = next((digits / "val" / "3").glob("*.png"))
    number = int(path.stem)
    assert source.target[number] == 3
    with Image.open(path) as image:
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float)
    assert np.corrcoef(small.ravel(), source.images[number].ravel())[0, 1] > 0.97


def test_second_call_keeps_the_tree(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert render_digits(digits) == {"train": 1438, "val": 359}
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]


def test_same_seed_same_split(digits, tmp_path):
    render_digits(tmp_path / "same")
    render_digits(tmp_path / "other", seed=1, size=8)
    names = [sorted(path.name for path in (root / "val").rglob("*.png")) for root in (digits, tmp_path / "same")]
    assert names[0] == names[1]
    assert sorted(path.name for path in (tmp_path / "other" / "val").rglob("*.png")) != names[0]


def test_other_parameters_and_foreign_or_incomplete_folders_are_refused(digits, tmp_path):
    with pytest.raises(DataError, match="'size': 32"):
        render_digits(digits, size=16)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.txt").write_text("x")
    with pytest.raises(DataError, match=r"was not made by make_data\.py digits"):
        render_digits(tmp_path / "mine")
    assert (tmp_path / "mine" / "photo.txt").exists()
    render_digits(tmp_path / "part", size=8)
    next((tmp_path / "part" / "train" / "1").glob("*.png")).unlink()
    with pytest.raises(DataError, match="incomplete"):
        render_digits(tmp_path / "part", size=8)


def test_an_empty_folder_is_filled_and_failure_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert render_digits(tmp_path / "empty", size=8, val_fraction=0.5)["val"] > 890
    assert json.loads((tmp_path / "empty" / "digits.json").read_text())["parameters"]["val_fraction"] == 0.5

    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        render_digits(tmp_path / "failed")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="val_fraction"):
        render_digits(tmp_path / "x", val_fraction=1.0)
    with pytest.raises(ValueError, match="size"):
        render_digits(tmp_path / "x", size=0)


def test_script_runs_from_anywhere(digits, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "digits", digits], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1438 training and 359 validation images" in done.stdout


def test_missing_scikit_learn_is_explained(tmp_path, monkeypatch, capsys):
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    main = runpy.run_path(str(SCRIPT))["main"]
    assert exit_code(main, ["digits", tmp_path / "d"]) == 2
    assert capsys.readouterr().err.strip().endswith("pip install scikit-learn")
    assert not (tmp_path / "d").exists()
