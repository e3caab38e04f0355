"""A folder too deep or too shallow: the error names the one that is likely meant."""

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
    (data.parent / "again" / "train").mkdir(parents=True)
    assert ", but " not in error(open_split, data.parent, "train", key="train", config=SourceConfig())


def test_mistyped_names_are_corrected(data):
    assert "does not exist (did you mean CLS-LOC?)" in error(
        open_split, data.parent / "CLS-LCO", "train", key="train", config=SourceConfig()
    )
    (data / "train").rename(data / "training")
    assert "has no folder train (did you mean training?)" in error(
        open_split, data, "train", key="train", config=SourceConfig()
    )


def test_evaluation_and_commands_name_it_too(data, tmp_path):
    text = error(open_source, tmp_path / "x", classes=["cat", "dog"])
    assert text.endswith(f"is {data} meant? Give that folder")
    assert f"give the folder around them, {data / 'val'}" in error(open_source, data / "val" / "cat")
    for call in (lambda: check_tree(tmp_path, workers=0), lambda: prepare([str(tmp_path), str(tmp_path / "store")])):
        assert error(call) == f"{tmp_path} has no splits train and val, but {data} has: give that folder"
    assert not (tmp_path / "store").exists()
    assert not check_tree(data / "val", workers=0).problems
