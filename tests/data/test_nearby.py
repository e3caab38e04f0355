"""A folder too deep or too shallow: the error names the one that is likely meant."""

import tarfile

import pytest
from PIL import Image

from ddfnet.data.check import check_tree
from ddfnet.data.sources import SourceConfig, open_source, open_split
from ddfnet.utils.errors import DataError
from scripts.prepare_images import main as prepare


@pytest.fixture
def data(tmp_path):
    """x/Data/CLS-LOC/{train,val}/{cat,dog}/0.png."""
    root = tmp_path / "x" / "Data" / "CLS-LOC"
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / "0.png")
    return root


def error(call, *arguments, **options):
    with pytest.raises(DataError) as info:
        call(*arguments, **options)
    return str(info.value)


@pytest.mark.parametrize("given", ["train", "train/cat", "val", "..", "../..", "../../.."])
def test_training_names_the_folder_with_the_split(data, given):
    root = (data / given).resolve()
    text = error(open_split, root, "train", key="train", config=SourceConfig())
    assert text == f"data.root={root} has no folder train, but {data} has: set data.root={data}"


def test_nothing_is_guessed_where_several_or_none_fit(data, tmp_path):
    (tmp_path / "other").mkdir()
    text = error(open_split, tmp_path / "other", "train", key="train", config=SourceConfig())
    assert "has no folder train: it holds train/ with one folder per class" in text
    for split in ("train", "val"):
        (data.parent / "again" / split).mkdir(parents=True)
    assert ", but " not in error(open_split, data.parent, "train", key="train", config=SourceConfig())


def test_mistyped_names_are_corrected(data):
    assert "does not exist (did you mean CLS-LOC?)" in error(
        open_split, data.parent / "CLS-LCO", "train", key="train", config=SourceConfig()
    )
    (data / "train").rename(data / "training")
    assert "has no folder train (did you mean training?)" in error(
        open_split, data, "train", key="train", config=SourceConfig()
    )


def test_a_class_around_its_splits_is_told_where_to_go(tmp_path):
    """ROOT/dog/train/1.png: neither ROOT nor ROOT/dog can be given."""
    for split in ("train", "val"):
        (tmp_path / "dog" / split).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "dog" / split / "1.png")
    inside, move = tmp_path / "dog" / "train", f"move the images of {tmp_path}/dog/train to {tmp_path}/train/dog, "
    for call in (
        lambda: open_split(tmp_path, "train", key="train", config=SourceConfig()),
        lambda: check_tree(tmp_path, workers=0),
    ):
        text = error(call)
        assert text.startswith((f"data.root={tmp_path} has no folder train", f"{tmp_path} has no splits"))
        assert move in text
    text = error(open_split, tmp_path / "dog", "train", key="train", config=SourceConfig())
    assert f"{inside} holds 1 image directly" in text
    assert f"images of one class lie in {inside}/NAME_OF_THE_CLASS; " in text
    labels = SourceConfig(labels="labels.csv")  # then splits need no class folders
    assert f"set data.root={tmp_path}/dog" in error(open_split, tmp_path, "train", key="train", config=labels)


def test_a_class_with_a_folder_train_is_no_dataset(tmp_path):
    for name in ("dog/train", "cat"):
        (tmp_path / name).mkdir(parents=True)
    assert "has no folder train: it holds" in error(open_split, tmp_path, "train", key="train", config=SourceConfig())


def test_what_cannot_be_data_or_be_listed_is_not_suggested(tmp_path, monkeypatch):
    def text():
        return error(open_split, tmp_path, "train", key="train", config=SourceConfig())

    for name in ("train.log", "train.zip"):
        (tmp_path / name).touch()
    assert "did you mean" not in text()
    (tmp_path / "trains").mkdir()
    assert "(did you mean trains?)" in text()
    monkeypatch.setattr("ddfnet.data.sources.nearby._MOST_NAMES", 0)
    assert "did you mean" not in text()
    monkeypatch.undo()
    monkeypatch.setattr("os.scandir", lambda _: (_ for _ in ()).throw(PermissionError("denied")))
    assert "has no folder train: it holds" in text()


def test_classes_and_labeled_folders_with_folders_of_these_names_pass(tmp_path):
    paths = ("c/real/1.png", "c/fake/train/2.png", "c/fake/val/3.png", "l/images/train/1.png", "l/images/val/2.png")
    for path in map(tmp_path.joinpath, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    labels = tmp_path / "l" / "labels.csv"
    labels.write_text("file,label\nimages/train/1.png,cat\nimages/val/2.png,dog\n")
    one = {"c": SourceConfig(), "l": SourceConfig(labels="labels.csv")}
    for name, images in (("c", {"fake": 2, "real": 1}), ("l", {"cat": 1, "dog": 1})):
        report = check_tree(tmp_path / name, workers=0, config=one[name])
        assert (report.problems, report.splits["images"].images_per_class) == ([], images)
        options = ["--labels", "labels.csv"] if name == "l" else []
        assert prepare([str(tmp_path / name), str(tmp_path / f"s{name}"), *options]) == 0
    kind = SourceConfig(source="folder")
    assert check_tree(tmp_path / "l", workers=0, config=kind).splits["images"].images == 2


def test_stores_to_verify_or_unpack_and_archives_are_not_looked_into(data, tmp_path):
    assert "has no splits" not in error(prepare, [str(tmp_path / "x"), "--verify"])
    assert prepare([str(tmp_path / "x"), str(tmp_path / "out"), "--unpack"]) == 0
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(data / "val" / "cat" / "0.png", "cat/0.png")
    (tmp_path / "tars").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "tars" / "a.tar")
    assert check_tree(tmp_path / "tars", workers=0).splits["images"].images == 1


def test_evaluation_and_commands_name_it_too(data, tmp_path):
    text = error(open_source, tmp_path / "x", classes=["cat", "dog"])
    assert text.endswith(f"is {data} meant? Give that folder")
    assert f"give the folder around them, {data / 'val'}" in error(open_source, data / "val" / "cat")
    for call in (lambda: check_tree(tmp_path, workers=0), lambda: prepare([str(tmp_path), str(tmp_path / "store")])):
        assert error(call) == f"{tmp_path} has no splits train and val, but {data} has: give that folder"
    assert not (tmp_path / "store").exists()
    assert not check_tree(data / "val", workers=0).problems
