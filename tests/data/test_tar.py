"""Tars: damage is named with file, member and fix; ImageNet's own downloads; the index that is kept."""

import io
import tarfile

import numpy as np
import pytest
from image_formats import samples, tar_bytes, write_folder_tar, write_shards, write_tar, write_tar_of_tars
from synthetic_images import draw

from ddfnet.data.sources import SourceConfig, open_source, open_split, tar_index
from ddfnet.data.sources.folder import not_counted_text
from ddfnet.data.sources.imagenet import DEVKIT
from ddfnet.utils.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def image(tmp_path):
    draw(tmp_path / "one.png", 1)
    return (tmp_path / "one.png").read_bytes()


def fails(words, path, **config):
    with pytest.raises(DataError, match=words) as caught:
        open_source(path, config=SourceConfig(**config))
    assert str(path) in str(caught.value)


def test_every_cut_of_a_tar_is_an_error(tree, tmp_path):
    path = write_folder_tar(tree, tmp_path)
    good = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(info.offset_data + -(-info.size // 512) * 512 for info in tar)
    assert len(open_source(path)) == 18
    for size in (0, 1, 511, 512, 513, 2000, len(good) // 2, end - 1, end - 512, end, end + 511):
        path.write_bytes(good[:size])
        fails("copy it again", path)


def test_every_flipped_header_is_an_error(tree, tmp_path):
    path = write_folder_tar(tree, tmp_path)
    good = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [info.offset for info in tar]
    for offset in headers:
        bad = bytearray(good)
        bad[offset + 10] ^= 0x55
        path.write_bytes(bad)
        fails("damaged.*copy it again|copy it again", path)


def test_damage_within_a_tar_of_tars_names_the_member(tree, tmp_path):
    path = write_tar_of_tars(tree, tmp_path)
    good = path.read_bytes()
    with tarfile.open(path) as tar:
        inner = tar.getmember("dog.tar")
    bad = bytearray(good)
    bad[inner.offset_data + 10] ^= 0x55
    path.write_bytes(bad)
    fails(r"member dog\.tar is damaged at byte", path)
    nested = tar_bytes([("a.tar", b"x")], tmp_path / "n")
    write_tar(path, [("dog.tar", nested)])
    fails(r"member dog\.tar: holds another tar, a\.tar", path)


def test_no_tar_and_compressed_tars(tree, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"not a tar" * 1000)
    fails("not a tar", path)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree, "train")
    fails("is compressed.*decompress it once", path)


def test_names_from_the_current_folder(tmp_path, image):
    inner = tar_bytes([("./b.png", image), ("./a.png", image)], tmp_path / "n")
    source = open_source(write_tar(tmp_path / "train.tar", [("./cat.tar", inner), ("./dog.tar", inner)]))
    assert [(source.label(i), source.key(i)) for i in range(4)] == [
        (0, "a.png"),
        (0, "b.png"),
        (1, "a.png"),
        (1, "b.png"),
    ]


def test_links_are_named(tmp_path, image):
    path = tmp_path / "a.tar"
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("cat/a.png")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
            link = tarfile.TarInfo("cat/b.png")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        fails(r"member cat/b\.png is a link", path)


def test_samples_of_shards(tmp_path, image):
    path = tmp_path / "a.tar"
    write_tar(path, [("1.png", image), ("1.cls", b"0"), ("1.png", image), ("1.cls", b"0")])
    fails(r"members 1\.png and 1\.png are both the image of one sample", path)
    write_tar(path, [("1.png", image), ("1.jpg", image), ("1.cls", b"0")])
    fails(r"members 1\.png and 1\.jpg are both the image of one sample.*data\.image_column", path)
    assert len(open_source(path, config=SourceConfig(image_column="jpg"))) == 1
    write_tar(path, [("1.png", image), ("1.cls", b"0"), ("2.png", image)])
    fails(r"member 2\.png has no label beside it", path)
    write_tar(path, [("1.png", image), ("1.cls", b"0"), ("2.cls", b"0")])
    fails(r"1 sample with a label but no image, for example member 2\.cls", path)
    for label in (b"", b"\xff", b"1" * 2000):
        write_tar(path, [("1.png", image), ("1.cls", label)])
        fails(r"member 1\.cls is no label", path)
    write_tar(path, [("1.png", image), ("1.cls", b"-1")])
    fails("label -1 is out of range", path)
    write_tar(path, [("readme.txt", b"x")])
    fails("holds no images", path)
    write_tar(path, [("1.png", image), ("1.cls", b"0")])
    fails("data.label_column=y: no member of .* has this extension", path, label_column="y")
    fails(r"data.val_labels=x is not used", path, val_labels="x")
    write_tar(path, [("cat/1.png", image), ("2.png", image)])
    fails(r"1 image in no folder, while others are in one: 2\.png", path)


def test_names_with_dots_and_other_columns(tmp_path, image):
    """WebDataset's key ends at the first dot; where nothing is paired, all of a name is the key."""
    path = write_tar(tmp_path / "a.tar", [("cat/a.1.png", image), ("cat/a.2.png", image), ("dog/._x.png", b"x"),
                                          ("dog/v1.0/b.PNG", image)])  # fmt: skip
    source = open_source(path)
    assert [source.key(i) for i in range(len(source))] == ["cat/a.1.png", "cat/a.2.png", "dog/v1.0/b.PNG"]
    assert source.classes == ["cat", "dog"]
    write_tar(path, [("7.left.png", image), ("7.right.png", b"x"), ("7.class", b"cat")])
    source = open_source(path, config=SourceConfig(image_column="left.PNG", label_column="class"))
    assert (source.classes, source.read(0)) == (["cat"], image)


def test_shards_that_count_from_0_again(tmp_path, image):
    for shard in range(2):
        write_tar(tmp_path / f"s-{shard}.tar", [("0.png", image), ("0.cls", b"0"), ("1.png", image), ("1.cls", b"0")])
    source = open_source(tmp_path / "s-*.tar")
    assert len(source) == 4
    assert [source.name(i)[len(str(tmp_path)) :] for i in range(4)] == [
        "/s-0.tar/0.png", "/s-1.tar/0.png", "/s-0.tar/1.png", "/s-1.tar/1.png",
    ]  # fmt: skip


def test_long_names_and_other_formats_of_tar(tmp_path, image):
    names = [f"cat/{'long' * 60}{i}.png" for i in range(3)] + ["dog/été 猫.png"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(image)
                tar.addfile(info, io.BytesIO(image))
        source = open_source(tmp_path / "a.tar")
        assert [source.key(i) for i in range(4)] == names
        assert all(source.read(i) == image for i in range(4))


def test_paths_that_point_elsewhere_are_only_names(tmp_path, image):
    """Nothing is unpacked: a member's name cannot reach a file."""
    path = write_tar(tmp_path / "a.tar", [("../../etc/x.png", image), ("/abs/y.png", image)])
    source = open_source(path)
    assert [source.read(i) for i in range(2)] == [image, image]
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "one.png"}


def test_a_large_index_is_kept_and_noticed_to_be_old(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "_KEEP_FROM", 1)
    shards = write_shards(tree, tmp_path / "out")
    path = shards / "set-train-*.tar"
    first = open_source(path)
    kept = list((tmp_path / "cache" / "indexes").iterdir())
    assert len(kept) == 1

    def refuse(path):
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "tar_members", refuse)
        again = open_source(path)
    for name in ("labels", "file", "start", "size"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert [again.read(i) for i in range(18)] == [first.read(i) for i in range(18)]
    kept[0].write_bytes(b"damaged")
    assert len(open_source(path)) == 18
    shard = shards / "set-train-0000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    fails("copy it again", path.parent / "set-train-0000.tar")
    with pytest.raises(DataError, match="copy it again"):
        open_source(path)


def flat_validation_tar(tree, tmp_path):
    """(images in the order of their numbers with their classes) as `ILSVRC2012_img_val.tar` in `tmp_path`."""
    rows = samples(tree)
    members = [(f"ILSVRC2012_val_{i:08d}.JPEG", content) for i, (_, _, content) in enumerate(rows, 1)]
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", members[::-1])
    return [(name, content) for name, _, content in rows]


def write_devkit(path, labels, *, meta=None):
    from scipy.io import savemat

    synsets = sorted(set(labels))
    ids = {name: 3 - i for i, name in enumerate(synsets)}  # in another order than the names
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    table = np.array([(float(ids[name]), name, "some, words") for name in synsets], dtype=kind)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table.reshape(-1, 1)})
    truth = "".join(f"{ids[name]}\n" for name in labels).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (
            ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth),
            ("ILSVRC2012_devkit_t12/data/meta.mat", buffer.getvalue() if meta is None else meta),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_imagenets_own_downloads(tree, tmp_path):
    """Train tar of class tars, flat val tar, labels of the devkit beside it."""
    pytest.importorskip("scipy")
    write_tar_of_tars(tree, tmp_path)
    expected = flat_validation_tar(tree, tmp_path)
    config = SourceConfig()
    train = open_split(tmp_path, "train", key="train", config=config)
    assert train.classes == ["cat", "dog", "eel"]
    with pytest.raises(DataError, match=r"in no class folder and without labels.*ILSVRC2012_devkit_t12.*val_labels"):
        open_split(tmp_path, "val", key="val", classes=train.classes, config=config)
    write_devkit(tmp_path / DEVKIT, [name for name, _ in expected])
    val = open_split(tmp_path, "val", key="val", classes=train.classes, config=config)
    assert sorted((val.classes[val.label(i)], val.read(i)) for i in range(18)) == sorted(expected)
    assert val.labels.tolist() == sorted(val.labels.tolist())


def test_other_lists_of_validation_labels(tree, tmp_path):
    expected = flat_validation_tar(tree, tmp_path)
    path = tmp_path / "ILSVRC2012_img_val.tar"
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 19)]
    labels = [name for name, _ in expected]
    listed = {
        "kaggle.csv": "ImageId,PredictionString\n"
        + "".join(f"{n},{c} 1 2 3 4 {c} 5 6 7 8\n" for n, c in zip(names, labels, strict=True)),
        "pairs.txt": "".join(f"val/{n}.JPEG {c}\n" for n, c in zip(names, labels, strict=True)),
        "synsets.txt": "".join(f"{c}\n" for c in labels),
    }
    for file, text in listed.items():
        (tmp_path / file).write_text(text)
        val = open_source(path, config=SourceConfig(val_labels=str(tmp_path / file)))
        assert sorted((val.classes[val.label(i)], val.read(i)) for i in range(18)) == sorted(expected), file
    (tmp_path / "synsets.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"has 1 label, .* has 18 images"):
        open_source(path, config=SourceConfig(val_labels=str(tmp_path / "synsets.txt")))
    (tmp_path / "pairs.txt").write_text("ILSVRC2012_val_00000001.JPEG cat\n")
    with pytest.raises(DataError, match="no label of 17 images"):
        open_source(path, config=SourceConfig(val_labels=str(tmp_path / "pairs.txt")))
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        open_source(path, config=SourceConfig(val_labels=str(tmp_path / "none.txt")))


def test_devkits_that_cannot_be_used(tree, tmp_path):
    pytest.importorskip("scipy")
    expected = [name for name, _ in flat_validation_tar(tree, tmp_path)]
    path, devkit = tmp_path / "ILSVRC2012_img_val.tar", tmp_path / DEVKIT
    write_devkit(devkit, expected, meta=b"MATLAB 5.0" + bytes(500))
    with pytest.raises(DataError, match=r"member meta\.mat is damaged"):
        open_source(path)
    write_devkit(devkit, expected[:17])
    with pytest.raises(DataError, match=r"1 images have other names: ILSVRC2012_val_00000018\.JPEG"):
        open_source(path)
    with tarfile.open(devkit, "w:gz"):
        pass
    with pytest.raises(DataError, match=r"has no member .*: it is not ImageNet's devkit"):
        open_source(path)
    devkit.write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        open_source(path)


def test_images_that_are_left_out_are_told(tree, tmp_path, capsys):
    members = [(f"{label}/{name}", data) for label, name, data in samples(tree)]
    left_out = [("cat/x.heic", b"x"), ("cat/y.HEIC", b"x"), ("dog/z.tga", b"x"), ("dog/notes.txt", b"x")]
    path = write_tar(tmp_path / "train.tar", [*members, *left_out, ("@eaDir/thumb.png", members[0][1])])
    source = open_source(path)
    assert source.classes == ["cat", "dog", "eel"]  # no thumbnails of a file server
    assert len(source) == 18
    assert source.others == {".heic": 2, ".tga": 1}
    assert not_counted_text(source).startswith(f"note: {path}: 3 files not counted: .heic 2, .tga 1")
    named = open_source(path, config=SourceConfig(image_column="png"))  # the extension was chosen: the others are meant
    assert named.others == {}
