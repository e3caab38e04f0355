import itertools
import os
import pickle

import numpy as np
import pytest
from synthetic_images import draw, make_tree

from ddfnet.data.sources.folder import index_folder
from ddfnet.utils import progress
from ddfnet.utils.errors import DataError


def test_paths_labels_and_classes(tree):
    index = index_folder(tree)
    assert index.classes == ["cat", "dog", "eel"]
    assert len(index) == 18
    assert index.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert [index.name(i) for i in range(18)] == sorted(str(path) for path in tree.rglob("*.png"))
    assert index.label(7) == 1


def test_agrees_with_torchvision(tree):
    from torchvision.datasets import ImageFolder

    draw(tree / "dog" / "deep" / "er" / "x.JPEG", 5)
    theirs = ImageFolder(str(tree))
    ours = index_folder(tree)
    assert ours.classes == theirs.classes
    assert {(ours.name(i), ours.label(i)) for i in range(len(ours))} == set(theirs.samples)


@pytest.mark.parametrize("name", ["a.JPEG", "a.jpg", "a.Jpg", "a.png", "a.WEBP", "a.bmp", "a.ppm", "a.tif", "a.TIFF"])
def test_extensions_in_any_case(tmp_path, name):
    draw(tmp_path / "cat" / name, 1)
    assert index_folder(tmp_path).name(0).endswith(name)


def test_ignores_hidden_and_other_files(tree):
    for name in ("._000.png", ".hidden.png", "notes.txt", "Thumbs.db"):
        (tree / "cat" / name).write_bytes(b"x")
    (tree / ".cache").mkdir()
    (tree / "README.md").write_text("x")
    assert len(index_folder(tree)) == 18


def test_unusual_file_names_survive(tmp_path):
    draw(tmp_path / "été ñ" / "a b\t猫.png", 1)
    raw = os.fsencode(tmp_path / "été ñ") + b"/latin\xe9.png"
    with open(raw, "wb") as file:
        file.write((tmp_path / "été ñ" / "a b\t猫.png").read_bytes())
    index = index_folder(tmp_path)
    assert len(index) == 2
    assert all(os.path.exists(index.name(i)) for i in range(2))


def test_follows_links_and_survives_a_loop(tmp_path, tree):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "cat").symlink_to(tree / "cat")
    (root / "dog").mkdir()
    (root / "dog" / "one.png").symlink_to(tree / "dog" / "000.png")
    (root / "dog" / "again").symlink_to(root / "dog")
    index = index_folder(root)
    assert np.bincount(index.labels).tolist() == [6, 1]


def test_a_dangling_link_is_listed_so_that_reading_reports_it(tree):
    (tree / "cat" / "gone.png").symlink_to(tree / "nowhere.png")
    assert len(index_folder(tree)) == 19


def test_given_classes_set_the_labels(tree):
    index = index_folder(tree, classes=["eel", "cat", "dog"])
    assert [index.label(i) for i in range(18)] == [0] * 6 + [1] * 6 + [2] * 6
    assert f"{os.sep}eel{os.sep}" in index.name(0)


def test_pickles_to_little_more_than_its_bytes(tmp_path):
    index = index_folder(make_tree(tmp_path, per_class=40))
    data = pickle.dumps(index)
    assert len(data) < index.blob.nbytes + index.offsets.nbytes + index.labels.nbytes + 2000
    again = pickle.loads(data)
    assert [again.name(i) for i in range(len(again))] == [index.name(i) for i in range(len(index))]
    assert again.classes == index.classes


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match=r"nope does not exist; give class folders"):
        index_folder(tmp_path / "nope")


def test_root_is_a_file(tmp_path):
    (tmp_path / "train.tar").write_bytes(b"x")
    with pytest.raises(DataError, match=r"train\.tar is a file"):
        index_folder(tmp_path / "train.tar")


def test_flat_validation_folder_is_explained(tmp_path):
    for i in range(3):
        draw(tmp_path / f"ILSVRC2012_val_{i}.JPEG", i)
    with pytest.raises(DataError, match=r"holds 3 images directly.*synset folders"):
        index_folder(tmp_path)


def test_no_class_folders(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        index_folder(tmp_path)


def test_empty_class_folders_are_named_five_at_most(tree):
    for i in range(7):
        (tree / f"void{i}").mkdir()
    with pytest.raises(DataError) as error:
        index_folder(tree)
    message = str(error.value)
    assert "7 of 10 class folders" in message
    assert "void0, void1, void2, void3, void4, ..." in message
    assert "void5" not in message


def test_other_classes_are_named(tree):
    with pytest.raises(DataError) as error:
        index_folder(tree, classes=["cat", "dog", "fox", "gnu"])
    message = str(error.value)
    assert "2 missing (fox, gnu)" in message
    assert "1 not expected (eel)" in message


def test_a_slow_index_shows_how_far_it_is(tree, monkeypatch, capsys):
    clock = itertools.count(0, 40)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    count = len(index_folder(tree).classes)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"files of {tree.name}: {count} of {count} folders")
    with progress.no_progress():
        index_folder(tree)
    assert capsys.readouterr().err == ""
