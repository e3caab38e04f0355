"""Image files at the edges: large ones, 32 bits, kinds that are not counted, and what stands beside the data."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw, make_tree

from ddfnet.data.check import check_tree, format_report
from ddfnet.data.dataset import CorruptImages, EvalDataset
from ddfnet.data.decode import Decoder, decode_error, open_rgb
from ddfnet.data.image_file import MAX_PIXELS, ImageTooLargeError, image_size, load_image
from ddfnet.data.sources.folder import index_folder, list_images
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.errors import DataError
from tests.processes import launch_forked

ROOT = Path(__file__).resolve().parents[2]


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def gray(values):
    return encoded(Image.fromarray(np.array(values)), "TIFF")


# --- 32 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((4, 6), 0.5, np.float32), 128),
        (np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6), np.rint(np.linspace(0, 255, 24))),
        (np.array([[0, 1], [1, 0]], np.float32), np.array([[0, 255], [255, 0]])),  # a mask
        (np.arange(24, dtype=np.float32).reshape(4, 6) * 11, np.arange(24) * 11),  # levels
        (np.arange(24, dtype=np.int32).reshape(4, 6) * 11, np.arange(24) * 11),
        (np.zeros((4, 6), np.int32), 0),
        (np.ones((4, 6), np.int32), 1),
    ],
)
def test_gray_of_32_bits_that_says_its_range_is_read(values, expected):
    pixels = np.asarray(open_rgb(gray(values)))
    assert (pixels == np.broadcast_to(np.ravel(expected).reshape(-1, 1), (values.size, 3)).reshape(pixels.shape)).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 6), 300.5, np.float32), r"32-bit floating-point numbers from 300\.5 to 300\.5"),
        (np.array([[-0.5, 0.5]], np.float32), r"from -0\.5 to 0\.5"),
        (np.array([[0.5, 2.5]], np.float32), r"from 0\.5 to 2\.5"),
        (np.array([[np.nan, 0.5]], np.float32), "from nan to nan"),
        (np.array([[0, 70000]], np.int32), "32-bit whole numbers from 0 to 70000, which have no agreed range"),
        (np.array([[-1, 3]], np.int32), "from -1 to 3"),
    ],
)
def test_gray_of_32_bits_of_another_range_is_corrupt_with_the_reason(values, words):
    with pytest.raises(ValueError, match=words):
        Decoder()(gray(values))


def test_the_check_remarks_and_counts_them(tmp_path):
    make_tree(tmp_path / "train")
    folder = next((tmp_path / "train").iterdir())
    (folder / "fraction.tif").write_bytes(gray(np.full((8, 8), 0.5, np.float32)))
    (folder / "heights.tif").write_bytes(gray(np.full((8, 8), 812.5, np.float32)))
    report = check_tree(tmp_path / "train")
    text = format_report(report)
    assert "1 x 32-bit gray (whole numbers as levels, 0 to 1 as fractions of 255), for example" in text
    assert "heights.tif is corrupt (ValueError: 32-bit floating-point numbers from 812.5 to 812.5" in text
    assert len(report.splits["images"].corrupt) == 1


# --- large images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_limit_is_of_the_size_and_says_so(kind):
    data = encoded(Image.new("RGB", (40, 30)), kind)
    assert Decoder(max_pixels=1200)(data).shape == (30, 40, 3)
    with pytest.raises(ImageTooLargeError) as error:
        Decoder(max_pixels=1199)(data)
    assert decode_error(error.value) == (
        "40 x 30 pixels are more than the 1,199 of data.max_pixels (--max-pixels): raise it, or shrink the image"
    )


@pytest.mark.parametrize("pillows", [700, 500])  # it warns from 700 on, and refuses from 1400 or 1000 on
def test_the_limit_of_pillow_is_neither_asked_nor_changed(monkeypatch, pillows):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    data = encoded(Image.new("RGB", (40, 30), (1, 2, 3)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data).size == image_size(data) == (40, 30)
        with pytest.raises(ImageTooLargeError):
            load_image(data, 1000)
    assert pillows == Image.MAX_IMAGE_PIXELS


def test_the_usual_limit_is_that_of_pillow():
    assert MAX_PIXELS == 2 * 89478485


def test_datasets_say_too_large_and_not_corrupt(index, small, caplog):
    dataset = EvalDataset(index, small, decoder=Decoder(max_pixels=10))
    with pytest.raises(DataError, match=r"is too large \(.* the image\); leaving it out would") as error:
        dataset[0]
    assert "restore" not in str(error.value)
    assert "corrupt" not in str(error.value)
    batch = {"index": [0], "corrupt": [(0, "9 x 9 pixels are more than the 3 of data.max_pixels")]}
    CorruptImages(index, 1.0).count(batch)
    assert "too large training image" in caplog.text


def test_training_evaluation_prediction_and_check_take_the_limit(tiny_config, image_tree, tmp_path):
    with pytest.raises(DataError, match="is too large"):
        train(load_config(tiny_config, ["data.max_pixels=100", "data.cache=none"]), dry_run=True)
    train(load_config(tiny_config, ["train.epochs=1", "schedule.warmup_epochs=0", f"run.dir={tmp_path / 'run'}"]))
    with pytest.raises(DataError, match="is too large"):
        evaluate_checkpoint(tmp_path / "run/best.pt", device="cpu", workers=0, max_pixels=100)
    path = next((image_tree / "val").rglob("*.png"))
    for script, arguments in (("predict", [path]), ("check_data", [image_tree, "--workers", "1"])):
        done = launch_forked(f"scripts/{script}.py", *arguments, "--max-pixels", 100)
        assert "are more than the 100 of data.max_pixels (--max-pixels)" in done.stdout + done.stderr
        assert done.returncode == (2 if script == "predict" else 1)


# --- which files count ------------------------------------------------------------------------------------------------


@pytest.fixture
def odd_tree(tmp_path):
    """A class with names that are rare, kinds that are left out, and what a file server puts beside them."""
    root = make_tree(tmp_path / "data")
    first = sorted(root.iterdir())[0]
    jpeg = encoded(Image.new("RGB", (40, 30), (90, 0, 0)), "JPEG")
    for name in ("a.jfif", "b.JFIF", "c.pjpeg"):
        (first / name).write_bytes(jpeg)
    for name in ("d.tga", "e.TGA", "f.heic", "notes.txt"):
        (first / name).write_bytes(b"x")
    for name in ("@eaDir", "__MACOSX"):
        for folder in (root / name, first / name):
            folder.mkdir()
            draw(folder / "thumb.png", 1)
    return root


def test_rare_names_count_and_other_kinds_are_told(odd_tree):
    first, *others = sorted(folder for folder in odd_tree.iterdir() if folder.name[0] not in "@_")
    index = index_folder(odd_tree)
    assert index.classes == [folder.name for folder in (first, *others)]  # neither @eaDir nor __MACOSX
    names = [index.key(i) for i in range(len(index))]
    assert not any("thumb" in name for name in names)
    assert {f"{first.name}/a.jfif", f"{first.name}/b.JFIF", f"{first.name}/c.pjpeg"} <= set(names)
    assert Decoder()(index.read(names.index(f"{first.name}/a.jfif"))).ndim == 3
    assert index.others == {".tga": 2, ".heic": 1}
    assert "remark: images: 3 files not counted: .heic 1, .tga 2" in format_report(check_tree(odd_tree))


def test_avif_counts_and_is_read_or_says_what_is_missing(tmp_path):
    from PIL import features

    (tmp_path / "x.avif").write_bytes(b"\x00\x00\x00\x1cftypavif" + b"\x00" * 40)
    assert list_images(tmp_path) == ["x.avif"]
    if not features.check("avif"):
        with pytest.raises(ValueError, match="AVIF, which this Pillow cannot read"):
            open_rgb((tmp_path / "x.avif").read_bytes())
    else:
        data = encoded(Image.new("RGB", (16, 8), (200, 0, 0)), "AVIF")
        assert open_rgb(data).size == (16, 8)


def test_training_evaluation_and_prediction_tell_what_they_leave_out(tiny_config, image_tree, tmp_path, capsys):
    import shutil

    tree = tmp_path / "tree"
    shutil.copytree(image_tree, tree)
    for split in ("train", "val"):
        (sorted((tree / split).iterdir())[0] / "x.heic").write_bytes(b"x")
    folder = tmp_path / "run"
    train(load_config(tiny_config, [f"data.root={tree}", f"run.dir={folder}", "train.epochs=1"]))
    printed = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"note: {tree / split}: 1 file not counted: .heic 1" in printed
    evaluate_checkpoint(folder / "best.pt", data=tree, device="cpu", workers=0)
    assert f"note: {tree / 'val'}: 1 file not counted: .heic 1" in capsys.readouterr().out
    done = launch_forked("scripts/predict.py", tree / "val", "--json")
    assert done.returncode == 0, done.stderr
    assert "1 file not counted: .heic 1" in done.stderr
    assert len(json.loads(done.stdout)) == 25
