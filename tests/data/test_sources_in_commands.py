"""The commands with every form of a dataset: training gives the same bits, eval.py and check_data.py read it."""

import shutil
import sys

import pytest
import torch
from image_formats import arrow_table, samples, write_class_tars, write_shards, write_table, write_tar

from ddfnet.data.check import check_tree
from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.write import write_store
from ddfnet.data.sources import SourceConfig
from ddfnet.data.sources.folder import index_folder
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.errors import DataError
from tests.conftest import CLASSES

KINDS = ["tables", "class_tars", "shards", "parquet", "arrow", "store", "timm_tars"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # drawing takes longer than all else


def write_both(kind, tree, out):
    """Both splits of a tree in one form; returns the overrides that a run needs."""
    overrides = [f"data.root={out}"]
    for split in ("train", "val"):
        if kind == "tables":
            write_table(tree / split, out, ".csv")
            if split == "val":
                (out / "train.csv").replace(out / "val.csv")
                write_table(tree / "train", out, ".csv")
        elif kind == "class_tars":
            (write_class_tars(tree / split, out / "t")).rename(out / split)
        elif kind == "shards":
            write_shards(tree / split, out / "t")
            for path in (out / "t").iterdir():
                path.replace(out / path.name.replace("train", "validation" if split == "val" else split))
        elif kind == "parquet":
            import pyarrow.parquet as pq

            (out / "data").mkdir(parents=True, exist_ok=True)
            name = "validation" if split == "val" else split
            pq.write_table(arrow_table(tree / split), out / "data" / f"{name}-00000-of-00001.parquet", row_group_size=4)
        elif kind == "arrow":
            import pyarrow as pa

            (out / split).mkdir(parents=True)
            table = arrow_table(tree / split)
            with pa.ipc.new_stream(str(out / split / "data-00000-of-00001.arrow"), table.schema) as writer:
                writer.write_table(table)
        elif kind == "store":
            write_store(index_folder(tree / split), out / split, Encoding())
        elif kind == "timm_tars":
            members = [(f"{split}/{name}/{file}", content) for name, file, content in samples(tree / split)]
            write_tar(out / f"{split}.tar", members)
    if kind == "shards":
        (out / "names.txt").write_text("\n".join(CLASSES))
        overrides.append(f"data.class_names={out / 'names.txt'}")
    if kind == "timm_tars":
        overrides += ["data.source=timm:any", "data.train=train.tar", "data.val=val.tar"]
    return overrides


def weights(run):
    return torch.load(run / "last.pt", weights_only=True)["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_same_bits_and_evaluation_the_same_figures(kind, image_tree, tiny_config, tmp_path):
    if kind in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    overrides = write_both(kind, image_tree, tmp_path / "data")
    train(load_config(tiny_config, ["train.epochs=1", f"run.dir={tmp_path / 'folders'}"]))
    train(load_config(tiny_config, ["train.epochs=1", f"run.dir={tmp_path / 'run'}", *overrides]))
    one, other = weights(tmp_path / "folders"), weights(tmp_path / "run")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert figures(tmp_path / "run" / "best.pt") == figures(tmp_path / "folders" / "best.pt")


def figures(checkpoint, **options):
    """The metrics that eval.py reports."""
    return evaluate_checkpoint(checkpoint, device="cpu", workers=0, **options).metrics


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "timm_tars"])
def test_check_data_reads_every_form(kind, image_tree, tmp_path):
    if kind in ("parquet", "arrow"):
        pytest.importorskip("pyarrow")
    tree = tmp_path / "tree"
    shutil.copytree(image_tree, tree)
    (tree / "val" / "disc" / "1.png").write_bytes(b"no image")
    write_both(kind, tree, tmp_path / "data")
    names = {"class_names": str(tmp_path / "data" / "names.txt")} if kind == "shards" else {}
    for workers in (0, 2):
        report = check_tree(tmp_path / "data", workers=workers, config=SourceConfig(**names))
        assert report.splits["train"].images_per_class == dict.fromkeys(CLASSES, 7)
        assert report.splits["val"].images_per_class == dict.fromkeys(CLASSES, 5)
        assert len(report.problems) == 1
        assert "1.png is corrupt (UnidentifiedImageError" in report.problems[0]


def test_evaluation_of_other_data(image_tree, tiny_config, tmp_path):
    """`--data` takes any form, too."""
    train(load_config(tiny_config, ["train.epochs=1", f"run.dir={tmp_path / 'run'}"]))
    checkpoint = tmp_path / "run" / "last.pt"
    expected = figures(checkpoint, data=image_tree)
    write_both("class_tars", image_tree, tmp_path / "tars")
    write_both("shards", image_tree, tmp_path / "shards")
    for data in (tmp_path / "tars", tmp_path / "tars" / "val", tmp_path / "shards"):
        assert figures(checkpoint, data=data) == expected
    with pytest.raises(DataError, match="does not exist"):
        figures(checkpoint, data=tmp_path / "none")
