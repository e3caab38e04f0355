"""The sets of `eval.py --sets`: folders, classes and labels."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ddfnet.evaluation.class_names import imagenet_classes
from ddfnet.evaluation.image_sets import find_sets, load_set
from ddfnet.utils.errors import DataError, UserError

CLASSES = ["dog", "ant", "cat"]  # not sorted: a checkpoint's order is its own


def tree(root, folders, count=2):
    """Images named as ImageNet's: in the order of a common number, not of the classes."""
    number = 0
    for i in range(count):
        for folder in folders:
            number += 1
            path = Path(root, folder, f"ILSVRC2012_val_{number:08d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (i, number % 256, 0)).save(path)
    return Path(root)


def files(images):
    return [Path(images.index.name(i)).name for i in range(len(images.index))]


def test_places(tmp_path):
    for folder in ("val", "imagenet-a", "imagenet-sketch", "elsewhere"):
        (tmp_path / folder).mkdir()
    found = find_sets(f"val, a,sketch,v2={tmp_path / 'elsewhere'}", tmp_path)
    assert list(found) == ["val", "a", "sketch", "v2"]
    assert found["sketch"] == tmp_path / "imagenet-sketch"
    assert found["v2"] == tmp_path / "elsewhere"
    assert find_sets(f"mine={tmp_path / 'val'}", None) == {"mine": tmp_path / "val"}


def test_data_that_no_set_is_looked_for_in_is_refused(tmp_path):
    (tmp_path / "val").mkdir()
    for data in (tmp_path, "/does/not/exist"):
        with pytest.raises(UserError, match=f"--data {data} is not used: every set .* Leave --data out"):
            find_sets(f"mine={tmp_path / 'val'},v2 = {tmp_path / 'val'}", data)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("v3", "'v3' is not a set: give val, real, v2, a, r, sketch, or NAME=FOLDER"),
        ("val,", "'' is not a set"),
        ("../x=val", "is not a set"),
        ("mine=", "is not a set"),
        ("val,val", "names val twice"),
    ],
)
def test_mistyped_sets(tmp_path, wanted, message):
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        find_sets(wanted, tmp_path)


def test_missing_sets_are_all_named_with_place_and_source(tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError) as caught:
        find_sets("val,real,r,sketch,mine=nowhere", tmp_path)
    message = str(caught.value)
    assert f"set real (ImageNet ReaL) is not at {tmp_path / 'real.json'}: get it from" in message
    assert "github.com/google-research/reassessed-imagenet" in message
    assert f"set r (ImageNet-R) is not at {tmp_path / 'imagenet-r'}" in message
    assert "github.com/hendrycks/imagenet-r" in message
    assert f"{tmp_path / 'sketch'} or {tmp_path / 'imagenet-sketch'}" in message
    assert "set mine is not at nowhere: name its folder with --sets mine=FOLDER" in message
    assert "set val" not in message
    with pytest.raises(UserError, match="--sets val needs --data"):
        find_sets("val", None)


def test_a_subset_is_scored_over_its_classes(tmp_path):
    images = load_set("a", tree(tmp_path / "a", ["cat", "dog"]), CLASSES)
    assert (images.classes, images.columns) == (["dog", "cat"], [0, 2])
    assert images.index.labels.tolist() == [0, 0, 1, 1]
    assert [Path(images.index.name(i)).parent.name for i in range(4)] == ["dog", "dog", "cat", "cat"]
    assert images.note == "Scored over its 2 classes: the checkpoint's other 1 output does not compete."
    with pytest.raises(DataError, match=r"set r: 1 class folders of .* are not among the 3 classes.*: cow"):
        load_set("r", tree(tmp_path / "r", ["cat", "cow"]), CLASSES)


@pytest.mark.parametrize("classes", [CLASSES, sorted(CLASSES)])
def test_a_set_with_all_classes_does_not_depend_on_their_order(tmp_path, classes):
    folder = tree(tmp_path / "mine", CLASSES)
    whole = load_set("mine", folder, classes)
    assert (whole.classes, whole.columns, whole.note) == (classes, None, "")
    assert [Path(whole.index.name(i)).parent.name for i in range(6)] == [classes[i // 2] for i in range(6)]
    more = load_set("mine", folder, classes, outputs=5)
    assert (more.classes, more.columns) == (classes, [0, 1, 2])
    assert "checkpoint's other 2 outputs, 2 of them without a class name, do not compete" in more.note
    assert load_set("val", folder, classes, outputs=5).columns is None  # the benchmark itself is over all outputs


def test_an_incomplete_imagenet_a_is_refused(tmp_path):
    """Fewer classes than the authors' 200 would be an easier task."""
    wnids = imagenet_classes("a")
    with pytest.raises(DataError, match="1 missing"):
        load_set("a", tree(tmp_path / "a", wnids[1:], count=1), imagenet_classes())
    images = load_set("a", tree(tmp_path / "a", wnids[:1], count=1), imagenet_classes())
    assert [imagenet_classes()[i] for i in images.columns] == wnids


def test_all_classes_must_be_there(tmp_path):
    with pytest.raises(DataError, match=r"1 missing \(ant\)"):
        load_set("val", tree(tmp_path / "val", ["cat", "dog"]), CLASSES)
    assert load_set("sketch", tree(tmp_path / "s", CLASSES), CLASSES).classes == CLASSES


def test_numbers_are_those_of_the_sorted_classes(tmp_path):
    images = load_set("v2", tree(tmp_path, ["0", "1", "2"], count=1), CLASSES)
    names = {Path(images.index.name(i)).parent.name: images.classes[images.index.label(i)] for i in range(3)}
    assert names == {"0": "ant", "1": "cat", "2": "dog"}
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(DataError, match=r"1 missing \(1\)"):
        load_set("v2", tmp_path, CLASSES)


def test_numbered_folders_of_many_classes_are_not_taken_in_the_order_of_strings(tmp_path):
    classes = [f"c{i:02d}" for i in range(12)]
    images = load_set("v2", tree(tmp_path, map(str, range(12)), count=1), classes)
    folders = {images.index.label(i): Path(images.index.name(i)).parent.name for i in range(12)}
    assert folders == {i: str(i) for i in range(12)}


def test_classes_that_are_numbers_are_not_sorted_as_text(tmp_path):
    shown = [str(i) for i in range(12)]
    for classes in (shown, sorted(shown)):
        images = load_set("v2", tree(tmp_path / "same", shown, count=1), classes)
        assert all(Path(images.index.name(i)).parent.name == classes[images.index.label(i)] for i in range(12))
    classes = [str(i) for i in range(1, 13)]
    images = load_set("v2", tree(tmp_path / "shifted", shown, count=1), sorted(classes))
    names = {Path(images.index.name(i)).parent.name: images.classes[images.index.label(i)] for i in range(12)}
    assert names == dict(zip(shown, classes, strict=True))
    tree(tmp_path / "real" / "val", shown, count=1)
    (tmp_path / "real" / "real.json").write_text(json.dumps([[i] for i in range(12)]))
    images = load_set("real", tmp_path / "real", sorted(shown))
    assert images.accepted[:, 0].tolist() == images.index.labels.tolist() == list(range(12))


def test_real_labels_follow_the_numbers_in_file_names(tmp_path):
    tree(tmp_path / "val", CLASSES)  # 1 dog, 2 ant, 3 cat, 4 dog, 5 ant, 6 cat
    ant, cat, dog = 0, 1, 2  # in the file: by sorted name
    (tmp_path / "real.json").write_text(json.dumps([[dog], [cat], [], [ant, dog], [ant], [dog, cat]]))
    images = load_set("real", tmp_path, CLASSES)
    found = {
        name: (CLASSES[images.index.label(i)], {CLASSES[label] for label in images.accepted[i] if label >= 0})
        for i, name in enumerate(files(images))
    }
    assert found == {
        "ILSVRC2012_val_00000001.png": ("dog", {"dog"}),
        "ILSVRC2012_val_00000002.png": ("cat", {"cat"}),
        "ILSVRC2012_val_00000004.png": ("dog", {"ant", "dog"}),
        "ILSVRC2012_val_00000005.png": ("ant", {"ant"}),
        "ILSVRC2012_val_00000006.png": ("cat", {"cat", "dog"}),
    }
    assert "1 of 6 images have none and are left out" in images.note


def test_renamed_images_keep_their_labels_or_are_refused(tmp_path):
    """Sorted by these names, they come in another order than the labels."""
    tree(tmp_path / "val", CLASSES)
    (tmp_path / "real.json").write_text(json.dumps([[2], [0], [1], [2], [0], [1]]))
    for path in sorted((tmp_path / "val").rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    images = load_set("real", tmp_path, CLASSES)
    assert images.accepted[:, 0].tolist() == images.index.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for path in sorted((tmp_path / "val").rglob("*.png")):
        path.rename(path.with_name(path.name.replace("ILSVRC2012_", "")))
    with pytest.raises(DataError, match=r"dog_val_00000001\.png: set real .*ILSVRC2012_val_00000001\.JPEG"):
        load_set("real", tmp_path, CLASSES)


def test_labels_of_other_images_are_refused(tmp_path):
    tree(tmp_path / "val", CLASSES)
    (tmp_path / "real.json").write_text(json.dumps([[0], [1], [2], [2], [], [0]]))
    with pytest.raises(DataError, match="include the class folder of only 1 of 5 images: they are of other"):
        load_set("real", tmp_path, CLASSES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[[0], [1]]", "labels of 2 images, but .* holds 6"),
        ("[[0], [1], [2], [3], [0], [0]]", "labels from 0 to 2"),
        ("{}", "must be a list"),
        ("[[0", "cannot be read as JSON"),
        ("[[], [], [], [], [], []]", "no labels at all"),
    ],
)
def test_damaged_labels(tmp_path, labels, message):
    tree(tmp_path / "val", CLASSES)
    (tmp_path / "real.json").write_text(labels)
    with pytest.raises(DataError, match=message):
        load_set("real", tmp_path, CLASSES)
