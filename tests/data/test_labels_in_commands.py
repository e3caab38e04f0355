"""check_data.py and prepare_images.py with labels from a file: one for each image, or any number."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddfnet.data.sources import SourceConfig, base, open_source, open_split
from ddfnet.data.sources.label_sets import LabelStore
from ddfnet.data.sources.store import META
from ddfnet.utils.errors import DataError
from scripts.source_options import FLAGS, KINDS, OPTIONS
from tests.conftest import draw, exit_code

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MULTI = SourceConfig(labels="labels.csv", multi_label=True)
STORED = SourceConfig(multi_label=True)
TAGS = {
    "train/a.png": "dog|cat", "train/b.png": "", "train/c.png": "eel|cat", "train/d.png": "dog",
    "val/e.png": "eel", "val/f.png": "dog|cat", "val/g.png": "",
}  # fmt: skip
ONE = ("dog", "cat", "eel", "dog", "eel", "dog", "cat")


@pytest.fixture
def root(tmp_path):
    """Images without class folders."""
    rng, root = np.random.default_rng(0), tmp_path / "data"
    for name in TAGS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        draw("disc", rng).save(root / name)
    write(root, TAGS.values())
    return root


def write(root, labels, more=()):
    lines = [f"{name},{label}" for name, label in zip(TAGS, labels, strict=True)]
    (root / "labels.csv").write_text("\n".join(["image,labels", *lines, *more]))


@pytest.fixture(scope="module")
def command():
    mains = {name: runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"] for name in ("check_data", "prepare_images")}
    return lambda name, *arguments: exit_code(mains[name], [*arguments, "--workers", "1", "--quiet"])


def tagged(source):
    """Pixels and class names of each image by its key."""
    rows = source.members[source.labels]
    names = [{n for n, has in zip(source.names, row, strict=True) if has} for row in rows]
    return {source.key(i): (source.read(i), names[i]) for i in range(len(source))}


# --- check_data.py ----------------------------------------------------------------------------------------------------


def test_the_check_counts_images_of_each_class_and_those_without(command, root, capsys):
    write(root, TAGS.values(), ["gone.png,cat"])
    (root / "val" / "x.heic").write_bytes(b"x")
    assert command("check_data", root, "--labels", "labels.csv", "--multi-label") == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("train", "val"))}
    assert rows["train"] == ["3", "4", "1", "2", "0"]  # classes, images, fewest, most, corrupt
    assert rows["val"] == ["3", "3", "1", "1", "0"]
    assert f"remark: train: 1 x image without any class, for example {root / 'train/b.png'}" in out
    assert "remark: val: 1 file not counted: .heic 1" in out
    assert "remark: 1 name in labels.csv of no image: gone.png\n" in out
    assert "no problems found" in out


def test_a_label_of_images_that_are_gone_is_said_to_be_no_class(command, root, capsys):
    write(root, TAGS.values(), ["gone.png,wolf", "lost.png,cat"])
    assert command("check_data", root, "--labels", "labels.csv", "--multi-label") == 0
    note = "2 names in labels.csv of no image: gone.png, lost.png; labels that no image has are no classes: wolf\n"
    assert f"remark: {note}" in capsys.readouterr().out


def test_the_check_finds_damage_and_classes_that_one_split_lacks(command, root, capsys):
    (root / "train" / "a.png").write_bytes(b"x")
    write(root, [*list(TAGS.values())[:4], "", "fox", ""])
    assert command("check_data", root, "--labels", "labels.csv", "--multi-label") == 1
    out = capsys.readouterr().out
    assert f"PROBLEM: train: {root / 'train/a.png'} is corrupt" in out
    assert "PROBLEM: val: without 3 classes of train: cat, dog, eel" in out
    assert "PROBLEM: val: 1 class not in train: fox" in out
    options = ("--labels", "labels.csv", "--multi-label", "--allow-missing-val-classes")
    assert command("check_data", root, *options) == 1
    out = capsys.readouterr().out
    assert "remark: val: without 3 classes of train: cat, dog, eel" in out
    assert "PROBLEM: val: 1 class not in train: fox" in out


def test_the_check_of_one_label_for_each_image(command, root, capsys):
    write(root, ONE)
    assert command("check_data", root, "--labels", "labels.csv") == 0
    assert "no problems found" in capsys.readouterr().out
    write(root, TAGS.values())
    assert command("check_data", root, "--labels", "labels.csv") == 1
    assert "has 0 labels (none): set data.multi_label=true" in capsys.readouterr().out


def test_lines_that_images_lack_are_a_problem(command, root, capsys):
    (root / "labels.csv").write_text("image,labels\na.png,cat\n")
    assert command("check_data", root, "--labels", "labels.csv", "--multi-label") == 1
    assert "PROBLEM: 3 images of" in capsys.readouterr().out


# --- prepare_images.py ------------------------------------------------------------------------------------------------


def test_a_store_has_the_label_sets_of_its_source(command, root, tmp_path, capsys):
    store = tmp_path / "store"
    assert command("prepare_images", root, store, "--labels", "labels.csv", "--multi-label") == 0
    assert f"{store / 'train'}: 4 images" in capsys.readouterr().out
    shutil.move(root, tmp_path / "elsewhere")  # the store stands by itself
    train = open_split(store, "train", key="train", config=STORED)
    assert isinstance(train, LabelStore)
    for split in ("train", "val"):
        before = open_split(tmp_path / "elsewhere", split, key=split, classes=["cat", "dog", "eel"], config=MULTI)
        after = open_split(store, split, key=split, classes=train.names, config=STORED)
        assert tagged(after) == tagged(before)
        assert after.counts().tolist() == before.counts().tolist()
        assert after.names == ["cat", "dog", "eel"]
    other = open_split(store, "val", key="val", classes=["eel", "dog", "cat"], config=STORED)
    assert other.names == ["eel", "dog", "cat"]
    assert tagged(other) == tagged(after)
    assert command("prepare_images", "--verify", store) == 0


def test_it_is_finished_once_and_another_file_of_labels_is_another_store(command, root, tmp_path, capsys):
    arguments = (root, tmp_path / "store", "--labels", "labels.csv", "--multi-label")
    assert command("prepare_images", *arguments) == 0
    assert command("prepare_images", *arguments) == 0
    capsys.readouterr()
    write(root, ["cat", *list(TAGS.values())[1:]])
    assert command("prepare_images", *arguments) == 2
    assert "names or labels of images that differ" in capsys.readouterr().err


def test_a_store_of_one_label_for_each_image_is_trained_from_without_the_file(command, root, tmp_path):
    write(root, ONE)
    assert command("prepare_images", root, tmp_path / "store", "--labels", "labels.csv") == 0
    source = open_source(tmp_path / "store" / "train")
    assert source.classes == ["cat", "dog", "eel"]
    labels = {source.key(i): source.classes[source.label(i)] for i in range(len(source))}
    assert labels == {"a.png": "dog", "b.png": "cat", "c.png": "eel", "d.png": "dog"}


def test_what_a_store_of_label_sets_is_not_is_one_sentence(command, root, tmp_path, capsys):
    store = tmp_path / "store"
    command("prepare_images", root, store, "--labels", "labels.csv", "--multi-label")
    with pytest.raises(DataError, match=r"each: set data\.multi_label=true .* and loss\.name=bce"):
        open_split(store, "train", key="train", config=SourceConfig())
    with pytest.raises(DataError, match=r"data\.labels=labels\.csv: the store .* leave the key out"):
        open_split(store, "train", key="train", config=MULTI)
    with pytest.raises(DataError, match="fox"):
        open_split(store, "train", key="train", classes=["cat", "dog", "eel", "fox"], config=STORED)
    assert command("prepare_images", "--unpack", store, tmp_path / "out") == 2
    assert "any number of classes, which class folders cannot say" in capsys.readouterr().err
    meta = store / "train" / META
    meta.write_text(meta.read_text().replace('"sets": [', '"sets": [[9], '))
    with pytest.raises(DataError, match=r"store\.json is damaged .* prepare the store again"):
        open_split(store, "train", key="train", config=STORED)


def test_a_store_of_single_labels_is_none_of_sets(command, root, tmp_path):
    write(root, ONE)
    command("prepare_images", root, tmp_path / "store", "--labels", "labels.csv")
    with pytest.raises(DataError, match="one class each; leave the key out, or prepare the store again"):
        open_split(tmp_path / "store", "train", key="train", config=STORED)


def test_validation_without_a_class_can_be_prepared(command, root, tmp_path, capsys):
    write(root, [*list(TAGS.values())[:4], "dog", "dog|cat", ""])
    arguments = (root, tmp_path / "store", "--labels", "labels.csv", "--multi-label")
    assert command("prepare_images", *arguments) == 2
    assert "1 missing (eel)" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "store")
    assert command("prepare_images", *arguments, "--allow-missing-val-classes") == 0
    allowed = STORED.model_copy(update={"allow_missing_val_classes": True})
    names = open_split(tmp_path / "store", "train", key="train", config=STORED).names
    val = open_split(tmp_path / "store", "val", key="val", classes=names, config=allowed)
    assert val.counts().tolist() == [1, 2, 0]


def test_no_class_at_all_is_refused(root):
    write(root, [""] * len(TAGS))
    with pytest.raises(DataError, match=r"gives no image of .* a class"):
        open_split(root, "train", key="train", config=MULTI)


def test_every_key_of_a_source_is_an_option_in_other_words():
    options = {"source": "", **{key: text for key, (_, text) in OPTIONS.items()}, **FLAGS}
    assert options.keys() == SourceConfig.model_fields.keys()
    assert KINDS == base.KINDS
    assert not any("null" in text for text in options.values())


def test_keys_that_contradict_are_one_line(command, root, tmp_path, capsys):
    assert command("check_data", root, "--labels", "labels.csv", "--kind", "tar") == 2
    assert " and data.source=tar contradict: labels are for folders of images" in capsys.readouterr().err
