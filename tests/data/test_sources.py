"""Every form of the same images is the same sequence and gives the same batches; what is wrong with one is named."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_formats import WRITERS, samples, write_shards, write_table
from synthetic_images import draw, make_tree

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.dataset import EvalDataset, TrainDataset
from ddfnet.data.loader import eval_batches, train_batches
from ddfnet.data.sampler import TrainSampler
from ddfnet.data.sources import SourceConfig, open_source, open_split, split_path
from ddfnet.utils.errors import ConfigError, DataError

ARROW = {"parquet", "nameless_parquet", "arrow"}
FORMATS = [*WRITERS, "timm_tar", "timm_folder"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))


def write(kind, tree, out):
    """(root, configuration) of the images of a tree in one form, as split train."""
    if kind in ARROW:
        pytest.importorskip("pyarrow")
    config = {}
    if kind.startswith("timm"):
        config["source"] = "timm:any"
        if kind == "timm_folder":
            return tree.parent, SourceConfig(**config)
        WRITERS["folder_tar"](tree, out)
        os.rename(out / "train.tar", out / "t.tar")
        (out / "t.tar").rename(out / "train.tar")
        return out, SourceConfig(**config)
    if kind == "shards":
        names = out / "names.txt"
        out.mkdir(parents=True)
        names.write_text("cat\ndog\neel\n")
        config["class_names"] = str(names)
    WRITERS[kind](tree, out)
    return out, SourceConfig(**config)


@pytest.mark.parametrize("kind", FORMATS)
def test_same_images_in_the_same_order(kind, tree, index, tmp_path):
    root, config = write(kind, tree, tmp_path / "out")
    part = "train.tar" if kind == "timm_tar" else "train"
    source = open_split(root, part, key="train", config=config)
    assert source.classes == index.classes
    assert len(source) == len(index)
    assert [source.label(i) for i in range(18)] == [index.label(i) for i in range(18)]
    assert [source.read(i) for i in range(18)] == [index.read(i) for i in range(18)]
    assert sorted(source.disk_order().tolist()) == list(range(18))
    assert len({(source.label(i), source.key(i)) for i in range(18)}) == 18
    if kind != "nameless_parquet":
        endings = [os.path.basename(index.name(i)) for i in range(18)]
        assert all(source.name(i).endswith(end) and source.key(i).endswith(end) for i, end in enumerate(endings))
    again = pickle.loads(pickle.dumps(source))
    assert again.read(17) == index.read(17)


def batches(source, small, workers):
    """Training batches of an epoch and evaluation batches, as tensors."""
    sampler = TrainSampler(
        length=18, global_batch=6, rank=0, world_size=1, accumulation=1, seed=3, start_step=0, end_step=3
    )
    training = TrainDataset(source, small, AugmentConfig(rand_augment="rand-m7-mstd0.5-inc1"), seed=3).read
    evaluation = EvalDataset(source, small).read
    device = torch.device("cpu")
    read = [*train_batches(training, sampler, lambda batch: batch, device=device, workers=workers)]
    read += eval_batches(
        evaluation, 18, lambda batch: batch, batch_size=5, rank=0, world_size=1, device=device, workers=workers
    )
    return [batch[key] for batch in read for key in ("image", "target", "index")]


@pytest.mark.parametrize("kind", FORMATS)
def test_same_batches_in_this_process_and_in_workers(kind, tree, index, small, tmp_path):
    root, config = write(kind, tree, tmp_path / "out")
    source = open_split(root, "train.tar" if kind == "timm_tar" else "train", key="train", config=config)
    source.read(0)  # what is open now, forked workers inherit
    expected = batches(index, small, workers=0)
    for workers in (0, 2):
        for ours, theirs in zip(batches(source, small, workers), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_the_reader_of_hugging_face_in_timm(tree, index, tmp_path):
    pytest.importorskip("datasets")
    WRITERS["parquet"](tree, tmp_path / "out")
    config = SourceConfig(source=f"timm:hfds/{tmp_path / 'out'}")
    source = open_split(tmp_path / "hf", "train", key="train", config=config)
    assert source.classes == index.classes
    assert sorted((source.label(i), source.read(i)) for i in range(18)) == sorted(
        (index.label(i), index.read(i)) for i in range(18)
    )


def test_what_the_datasets_package_saves(tree, index, tmp_path):
    """Against its own writer: `save_to_disk` and `to_parquet`."""
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset("imagefolder", data_dir=str(tree), cache_dir=str(tmp_path / "c"), split="train")
    data.to_parquet(str(tmp_path / "p" / "data" / "train-00000-of-00001.parquet"))
    with pytest.raises(DataError, match=r"18 rows without an image, at most with its path.*embed_table_storage"):
        open_split(tmp_path / "p", "train", key="train", config=SourceConfig())
    data = data.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    data.to_parquet(str(tmp_path / "p" / "data" / "train-00000-of-00001.parquet"))
    embedded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "p/data/*.parquet"), cache_dir=str(tmp_path / "c")
    )
    embedded.save_to_disk(str(tmp_path / "a"))
    for root in (tmp_path / "p", tmp_path / "a"):
        source = open_split(root, "train", key="train", config=SourceConfig())
        assert source.classes == index.classes
        assert [source.read(i) for i in range(18)] == [index.read(i) for i in range(18)]


@pytest.mark.parametrize("kind", ["csv", "shards", "parquet", "arrow", "tar_of_tars"])
def test_expected_classes_set_the_labels(kind, tree, tmp_path):
    root, config = write(kind, tree, tmp_path / "out")
    path = split_path(root, "train")
    source = open_source(path, classes=["eel", "cat", "dog"], config=config)
    plain = open_source(path, config=config)
    assert source.classes == ["eel", "cat", "dog"]
    names = [(source.classes[source.label(i)], source.read(i)) for i in range(18)]
    assert sorted(names) == sorted((plain.classes[plain.label(i)], plain.read(i)) for i in range(18))
    assert [source.label(i) for i in range(18)] == [0] * 6 + [1] * 6 + [2] * 6
    where = {"csv": r"train\.csv, line \d+", "shards": r"\.tar/\w+\.png"}.get(kind, r".+")
    with pytest.raises(DataError, match=rf"1 missing \(fox\) and 1 not expected \(eel(, the first in .*{where})?\)"):
        open_source(path, classes=["cat", "dog", "fox"], config=config)


def test_numbers_without_names_take_the_expected_classes(tree, tmp_path):
    path = split_path(write_shards(tree, tmp_path / "out"), "train")
    assert open_source(path).classes == ["0", "1", "2"]
    assert open_source(path, classes=["cat", "dog", "eel"]).classes == ["cat", "dog", "eel"]
    with pytest.raises(DataError, match="label 2 is out of range, there are 2 classes"):
        open_source(path, classes=["cat", "dog"])


def test_a_class_without_images(tree, tmp_path):
    path = split_path(write_shards(tree, tmp_path / "out"), "train")
    (tmp_path / "names.txt").write_text("cat\ndog\neel\nfox\n")
    config = SourceConfig(class_names=str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match=r"no images of 1 of 4 classes in .*: fox"):
        open_source(path, config=config)
    assert open_source(path, config=config, allow_empty=True).classes == ["cat", "dog", "eel", "fox"]


def test_imagenet_classes_in_words_are_its_synsets():
    from timm.data import ImageNetInfo

    from ddfnet.data.sources.classes import settle_classes

    info = ImageNetInfo("imagenet-1k")
    words = [info.index_to_description(i) for i in range(1000)]
    labels = np.arange(1000)
    numbers, classes = settle_classes("x", labels, words, classes=info.label_names(), config=SourceConfig())
    assert classes == info.label_names()
    assert numbers.tolist() == labels.tolist()
    others = [f"class {i}" for i in range(1000)]
    assert settle_classes("x", labels, others, classes=None, config=SourceConfig())[1] == others
    named = settle_classes("x", labels, None, classes=None, config=SourceConfig(class_names="imagenet-1k"))
    assert named[1] == info.label_names()


def test_splits_by_name(tmp_path):
    names = ["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "imagenet1k-validation-01.tar"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "test-00000-of-00001.parquet").touch()
    assert split_path(tmp_path, "train") == tmp_path / "imagenet1k-train[-_.][0-9]*.tar"
    assert split_path(tmp_path, "val") == tmp_path / "imagenet1k-validation[-_.][0-9]*.tar"
    assert split_path(tmp_path, "test") == tmp_path / "sub" / "test[-_.][0-9]*.parquet"
    assert split_path(tmp_path, "imagenet1k-val*.tar") == tmp_path / "imagenet1k-val*.tar"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "validation.parquet").touch()
    assert split_path(tmp_path / "plain", "val") == tmp_path / "plain" / "validation.parquet"
    assert split_path(tmp_path, "other") is None
    assert split_path(tmp_path / "none", "train") is None
    (tmp_path / "cifar-train-0000.tar").touch()
    with pytest.raises(DataError, match=r"several datasets with a split train: .*pattern as data\.train"):
        split_path(tmp_path, "train")


def test_the_cache_of_the_hub(tree, index, tmp_path):
    pytest.importorskip("pyarrow")
    cache = tmp_path / "datasets--someone--images"
    WRITERS["parquet"](tree, cache / "snapshots" / "0a1b")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0a1b")
    assert len(open_split(cache, "train", key="train", config=SourceConfig())) == 18
    (cache / "refs" / "main").write_text("ffff")
    with pytest.raises(DataError, match="holds 1 revisions"):
        split_path(cache, "train")


def test_archives_beside_class_folders_are_not_taken_for_the_data(tree):
    (tree / "leftover.tar").write_bytes(b"x")
    assert len(open_source(tree)) == 18


@pytest.mark.parametrize(
    ("make", "config", "words"),
    [
        (lambda p: (p / "a.tar.gz").touch() or p / "a.tar.gz", {}, r"compressed.*decompress it once"),
        (lambda p: (p / "a.dat").touch() or p / "a.dat", {}, "no known kind.*data.source"),
        (lambda p: p / "*.tar", {}, "no file matches"),
        (lambda p: p / "none.csv", {"source": "table"}, "does not exist"),
        (lambda p: (p / "a").mkdir() or p, {"source": "tar"}, "no files of data.source=tar"),
        (lambda p: p / "train", {"class_names": "x"}, "data.class_names=x is not used: .* is of kind folder"),
        (lambda p: p / "train", {"val_labels": "x"}, "data.val_labels=x is not used"),
    ],
)
def test_what_cannot_be_opened(make, config, words, tree, tmp_path):
    with pytest.raises(DataError, match=words):
        open_source(make(tmp_path), config=SourceConfig(**config))


def test_an_unknown_kind_is_an_error_of_the_configuration():
    from ddfnet.tasks import check_config

    data = {"model": {"name": "resnet18"}, "data": {"root": "r", "source": "tars"}, "optim": {"lr": 0.1},
            "train": {"epochs": 1, "batch_size": 8, "device_batch_size": 8}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"data.source='tars' is not known: did you mean tar"):
        check_config(data)
    data["data"]["source"] = "timm:hfds/cifar10"
    assert check_config(data).data.source == "timm:hfds/cifar10"


def test_streams_of_timm_are_refused(tmp_path):
    for name in ("wds/x", "tfds/x", "hfids/x"):
        with pytest.raises(DataError, match=r"streams.*data.source=tar"):
            open_split(tmp_path, "train", key="train", config=SourceConfig(source=f"timm:{name}"))


def test_a_reader_that_timm_has_not_got_is_refused(tree):
    """timm itself would take class folders, whatever the name."""
    with pytest.raises(DataError, match=r"data.source=timm:nope/x: timm has no reader of nope/.*timm:hfds/NAME"):
        open_split(tree, "train", key="train", config=SourceConfig(source="timm:nope/x"))


def test_a_broken_image_is_the_same_broken_image_in_every_form(tree, tmp_path, small):
    (tree / "dog" / "002.png").write_bytes(b"no image")
    from ddfnet.data.sources.folder import index_folder

    folder = TrainDataset(index_folder(tree), small, AugmentConfig(), seed=0)
    expected = [folder[(0, i, 0)] for i in range(18)]
    assert [bool(problem) for *_, problem in expected] == [i == 8 for i in range(18)]
    for kind in ("csv", "shards", "folder_tar"):
        root, config = write(kind, tree, tmp_path / kind / "out")
        source = open_split(root, "train", key="train", config=config)
        ours = [TrainDataset(source, small, AugmentConfig(), seed=0)[(0, i, 0)] for i in range(18)]
        for one, other in zip(ours, expected, strict=True):
            assert torch.equal(one[0], other[0])
            assert one[1:] == other[1:]
        with pytest.raises(DataError, match=r"002\.png is corrupt"):
            EvalDataset(source, small)[8]


def test_lists(tree, tmp_path):
    path = write_table(tree, tmp_path / "out", ".csv")
    text = path.read_text()

    def fails(words, content, **config):
        path.write_text(content)
        with pytest.raises(DataError, match=words):
            open_source(path, config=SourceConfig(**config))

    header, first = text.splitlines()[:2]
    fails(r"no label column among split, file_name, kind.*data.label_column", text.replace("label", "kind"))
    fails("no column nothing, only split", text, label_column="nothing")
    fails(r"row 2: no value for file_name or label", f"{header}\ntrain,,cat\n")
    fails(r"row 2: no value", f"{header}\ntrain\n")
    fails(r"has the label cat in line 2 and dog in line 3", f"{header}\n{first}\n{first.replace(',cat', ',dog')}\n")
    fails(r"line 2: there is no file .*none\.png; paths must be absolute, or", f"{header}\ntrain,none.png,cat\n")
    fails("line 2: label -1 is out of range", f"{header}\n{first.rsplit(',', 1)[0]},-1\n")
    rest = "\n".join(text.splitlines()[1:-1])
    fails(r"line 19: there is no file .*none\.png", f"{header}\n{rest}\ntrain,none.png,eel\n")
    fails("holds no images", f"{header}\n")
    path.write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_source(path)
    other = write_table(tree, tmp_path / "out", ".txt")
    other.write_text("alone\n")
    with pytest.raises(DataError, match="line 1: expected a path and a label"):
        open_source(other)
    with pytest.raises(DataError, match=r"data.label_column=x: .* has no column names"):
        open_source(other, config=SourceConfig(label_column="x"))


def test_class_names_that_cannot_be_used(tree, tmp_path):
    path = split_path(write_shards(tree, tmp_path / "out"), "train")
    names = tmp_path / "names.txt"
    for content, words in (
        ("", "one name a line"),
        ("cat\n\neel\n", "one name a line"),
        ("a\na\nb\n", "occur twice: a"),
    ):
        names.write_text(content)
        with pytest.raises(DataError, match=words):
            open_source(path, config=SourceConfig(class_names=str(names)))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        open_source(path, config=SourceConfig(class_names="/none"))


def test_without_pyarrow_the_error_names_the_command(tree, tmp_path):
    pytest.importorskip("pyarrow")
    WRITERS["parquet"](tree, tmp_path / "out")
    program = (
        "import sys; sys.modules['pyarrow'] = None\nfrom ddfnet.data.sources import open_source\n"
        f"open_source({str(tmp_path / 'out/data')!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "DataError: reading " in done.stderr
    assert "needs pyarrow, which is missing: pip install pyarrow" in done.stderr


def test_damaged_arrow_and_parquet(tree, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    WRITERS["parquet"](tree, tmp_path / "p")
    path = tmp_path / "p/data/train-00001-of-00002.parquet"
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], b"PAR1" + bytes(50), b""):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is damaged, or no parquet file"):
            open_source(path.parent)
    table = pq.read_table(tmp_path / "p/data/train-00000-of-00002.parquet")
    pq.write_table(table.drop_columns(["label"]), path)
    with pytest.raises(DataError, match=r"no label column among image; name the one to use with data.label_column"):
        open_source(path)
    pq.write_table(table.append_column("target", table["label"]).replace_schema_metadata(None), path)
    with pytest.raises(DataError, match="several label columns, label, target"):
        open_source(path)
    assert len(open_source(path, config=SourceConfig(label_column="target"))) == 9
    pq.write_table(table.set_column(1, "label", pa.array([9] * 9)).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DataError, match=r"parquet, row 0: label 9 is out of range, there are 3 classes \(0 to 2\)"):
        open_source(path)
    pq.write_table(table.set_column(1, "label", pa.array([None] * 9, pa.int64())), path)
    with pytest.raises(DataError, match="9 rows without label"):
        open_source(path)

    WRITERS["arrow"](tree, tmp_path / "a")
    path = tmp_path / "a/train/data-00000-of-00001.arrow"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"\.arrow is damaged"):
        open_source(path.parent)
    os.remove(path)
    with pytest.raises(DataError, match="which is missing; copy the whole folder"):
        open_source(path.parent)
    table = pa.table({"image": [content for *_, content in samples(tree)], "label": ["a"] * 18})
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="compressed, so that its images cannot be read at random"):
        open_source(path)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    assert sorted(map(open_source(path).read, range(18))) == sorted(content for *_, content in samples(tree))


def test_a_parquet_file_that_is_damaged_inside_gives_corrupt_images(tree, tmp_path):
    pytest.importorskip("pyarrow")
    WRITERS["parquet"](tree, tmp_path / "p", shards=1)
    path = tmp_path / "p/data/train-00000-of-00001.parquet"
    good = bytearray(path.read_bytes())
    good[4:2000] = bytes(1996)
    path.write_bytes(good)
    source = open_source(path)
    failed = 0
    for i in range(18):
        try:
            source.read(i)
        except OSError:
            failed += 1
    assert 0 < failed < 18


def test_images_of_a_tree_in_other_places(tmp_path):
    """Relative paths of a list start from its folder."""
    make_tree(tmp_path / "images", per_class=1)
    draw(tmp_path / "images" / "cat" / "a b.png", 9)
    (tmp_path / "train.txt").write_text("images/cat/a b.png cat\nimages/dog/000.png dog\n")
    shutil.copy(tmp_path / "train.txt", tmp_path / "val.txt")
    source = open_split(tmp_path, "train", key="train", config=SourceConfig())
    assert [source.key(i) for i in range(2)] == ["images/cat/a b.png", "images/dog/000.png"]
    assert source.read(0) == (tmp_path / "images/cat/a b.png").read_bytes()
