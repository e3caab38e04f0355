"""Validation without some of the classes: an error that names the key, or accepted with it, in every form of data."""

import shutil

import pytest

from ddfnet.data.sources import SourceConfig, open_split
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.errors import DataError
from ddfnet.utils.files import read_jsonl
from tests.conftest import CLASSES

KEY = "data.allow_missing_val_classes=true"


@pytest.fixture(params=["absent", "empty"])
def tree(request, tmp_path, image_tree):
    """A copy of the image tree without validation images of the class grid."""
    root = tmp_path / "images"
    shutil.copytree(image_tree, root)
    shutil.rmtree(root / "val" / "grid")
    if request.param == "empty":
        (root / "val" / "grid").mkdir()
    return root


def test_training_and_evaluation_with_and_without_the_key(tree, tiny_config, tmp_path, capsys):
    overrides = [f"data.root={tree}", "train.epochs=1", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(DataError, match=f"grid.*or accept validation without them: {KEY}"):
        train(load_config(tiny_config, overrides))
    assert not (tmp_path / "run").exists()
    assert train(load_config(tiny_config, [*overrides, KEY])) == 0
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    (trained,) = [record for record in records if record["kind"] == "val"]
    assert trained["n"] == 20
    for data in (None, tree):  # that of training, and the same as --data
        report = evaluate_checkpoint(
            tmp_path / "run" / "best.pt", device="cpu", workers=0, data=data, output=tmp_path / "eval"
        )
        assert (report.metrics["n"], report.metrics["top1"]) == (20, trained["top1"])
        assert report.classes == list(CLASSES)


def test_training_images_of_each_class_are_still_needed(tree, tiny_config):
    for image in (tree / "train" / "disc").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"no images in 1 of 5 class folders in .*train: disc") as error:
        train(load_config(tiny_config, [f"data.root={tree}", KEY]))
    assert "allow_missing_val_classes" not in str(error.value)


def test_a_class_too_many_is_an_error_with_the_key_too(tree, tiny_config):
    (tree / "val" / "other").mkdir()
    with pytest.raises(DataError, match=r"1 not expected \(other\)"):
        train(load_config(tiny_config, [f"data.root={tree}", KEY]))


def test_no_validation_images_at_all(tree):
    for name in set(CLASSES) - {"grid"}:
        shutil.rmtree(tree / "val" / name)
        (tree / "val" / name).mkdir()
    with pytest.raises(DataError, match="holds no images of any class"):
        open_split(tree, "val", key="val", classes=[*CLASSES], config=SourceConfig(allow_missing_val_classes=True))


@pytest.mark.parametrize("labels", ["names", "numbers"])
def test_lists(tree, labels):
    """A list of paths and labels, where class 4 or stripes is missing, and one in the middle."""
    label = {name: name if labels == "names" else str(i) for i, name in enumerate(CLASSES)}
    rows = [f"train/{name}/0.png,{label[name]}" for name in CLASSES if name not in ("grid", "stripes")]
    (tree / "val.csv").write_text("\n".join(["path,label", *rows]))
    classes = [label[name] for name in CLASSES]
    shutil.rmtree(tree / "val")
    with pytest.raises(DataError, match=KEY):
        open_split(tree, "val", key="val", classes=classes, config=SourceConfig())
    config = SourceConfig(allow_missing_val_classes=True)
    source = open_split(tree, "val", key="val", classes=classes, config=config)
    assert [source.label(i) for i in range(len(source))] == [0, 1, 3]
