"""Labels from a file: names, separators, lines that several images or none have, and one label or several."""

import numpy as np
import pytest

from ddfnet.data.sources import SourceConfig, open_split
from ddfnet.data.sources.label_sets import LabelSets, class_names, unused_lines
from ddfnet.utils.errors import ConfigError, DataError
from tests.conftest import draw

MULTI = SourceConfig(labels="labels.csv", multi_label=True)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/a.png", "train/deep/b.png", "train/c.png", "val/a.png", "val/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        draw("disc", rng).save(tmp_path / name)
    return tmp_path


def write(root, *lines, head="image,labels", name="labels.csv"):
    (root / name).write_text("\n".join([head, *lines]))


def sets_of(source):
    """Class names of each image by its key."""
    rows = source.members[source.labels]
    return {source.key(i): {n for n, has in zip(source.names, rows[i], strict=True) if has} for i in range(len(source))}


GOOD = ("train/a.png,dog|cat", "deep/b.png,", "c.png,cat", "c.png,eel", "val/a.png,eel", "d.png,dog|cat")


def test_names_sets_and_several_lines(root):
    write(root, *GOOD)
    train = open_split(root, "train", key="train", config=MULTI)
    assert isinstance(train, LabelSets)
    assert class_names(train) == ["cat", "dog", "eel"]
    assert sets_of(train) == {"a.png": {"cat", "dog"}, "deep/b.png": set(), "c.png": {"cat", "eel"}}
    assert sorted(train.classes) == ["(none)", "cat|dog", "cat|eel"]
    val = open_split(root, "val", key="val", classes=class_names(train), config=MULTI)
    assert sets_of(val) == {"a.png": {"eel"}, "d.png": {"cat", "dog"}}
    assert val.read(0)[:4] == b"\x89PNG"
    assert unused_lines(str(root), (train, val), MULTI) == ""


@pytest.mark.parametrize(
    ("cell", "separator"), [("cat;dog", None), ('"cat,dog"', None), ("cat dog", " "), ('"cat, dog"', ",")]
)
def test_separators(root, cell, separator):
    write(root, f"a.png,{cell}", "b.png,cat", "c.png,dog", "d.png,dog")
    config = MULTI.model_copy(update={"label_separator": separator})
    assert sets_of(open_split(root, "train", key="train", config=config))["a.png"] == {"cat", "dog"}


def test_lists_as_splits(root):
    for split, line in (("train", "train/a.png,x|y"), ("val", "val/d.png,y|x")):
        write(root, line, name=f"{split}.csv", head="filename,class")
    config = SourceConfig(multi_label=True)
    train = open_split(root, "train.csv", key="train", config=config)
    val = open_split(root, "val.csv", key="val", classes=class_names(train), config=config)
    assert (sets_of(train), sets_of(val)) == ({"train/a.png": {"x", "y"}}, {"val/d.png": {"x", "y"}})


def test_one_label_for_each_image_is_plain_classification(root):
    write(root, "a.png,dog", "b.png,cat", "c.png,cat|dog", "d.png,dog")
    source = open_split(root, "train", key="train", config=SourceConfig(labels="labels.csv"))
    assert not isinstance(source, LabelSets)
    assert source.classes == ["cat", "cat|dog", "dog"]
    assert {source.key(i): source.classes[source.label(i)] for i in range(3)}["c.png"] == "cat|dog"


def test_unused_lines_are_found(root):
    write(root, *GOOD, "e.png,cat")
    train = open_split(root, "train", key="train", config=MULTI)
    assert unused_lines(str(root), (train,), MULTI) == "3 names in labels.csv of no image: val/a.png, d.png, e.png"


@pytest.mark.parametrize(
    ("lines", "config", "message"),
    [
        (GOOD[1:], MULTI, r"1 image of .*train without a line in .*labels\.csv: a\.png"),
        (("b.png,x",), MULTI, r"2 images of .*: a\.png, c\.png"),
        (GOOD, SourceConfig(labels="none.csv"), r"none\.csv cannot be read"),
        (GOOD, SourceConfig(labels="labels.csv"), r"c\.png of .* has 2 labels \(cat, eel\): set data\.multi_label"),
        (GOOD, MULTI.model_copy(update={"label_column": "tags"}), r"no column tags, only image, labels"),
        (("a.png",), MULTI, r"row 2: no value"),
        (GOOD, SourceConfig(multi_label=True), r"train is no list: give data\.train=FILE\.csv"),
    ],
)
def test_mistakes(root, lines, config, message):
    write(root, *lines)
    with pytest.raises(DataError, match=message):
        open_split(root, "train", key="train", config=config)


def test_a_name_that_two_images_have(root):
    draw("disc", np.random.default_rng(0)).save(root / "train" / "deep" / "a.png")
    write(root, "a.png,cat", "b.png,cat", "c.png,cat")
    with pytest.raises(DataError, match=r"names a\.png, which .* has as a\.png and deep/a\.png"):
        open_split(root, "train", key="train", config=MULTI)


def test_classes_of_validation(root):
    write(root, *GOOD)
    for classes, message in ((["cat", "dog"], "1 not expected .eel"), (["cat", "dog", "eel", "fox"], "1 missing .fox")):
        with pytest.raises(DataError, match=message):
            open_split(root, "val", key="val", classes=classes, config=MULTI)
    accepted = MULTI.model_copy(update={"allow_missing_val_classes": True})
    val = open_split(root, "val", key="val", classes=["cat", "dog", "eel", "fox"], config=accepted)
    assert val.members.shape == (2, 4)


def test_sources_that_have_no_place_for_labels():
    with pytest.raises(
        ValueError, match=r"data\.labels=x\.csv and data\.source=tar contradict: labels are for folders"
    ):
        SourceConfig(labels="x.csv", source="tar")
    assert issubclass(ConfigError, ValueError)
