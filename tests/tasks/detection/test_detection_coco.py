"""COCO-format data: what is learned from, what is said of mistakes, and the batches."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.data.loader import eval_batches, train_batches
from ddfnet.data.sampler import TrainSampler
from ddfnet.tasks.detection.coco import index_coco
from ddfnet.tasks.detection.data import DetectionReader, flip_boxes, scale_images
from ddfnet.tasks.detection.synthetic import render_shapes
from ddfnet.utils.errors import DataError
from scripts import make_data
from tests.conftest import exit_code

CPU = torch.device("cpu")


@pytest.fixture
def tree(tmp_path):
    """Four images of 40 x 30: two usable boxes, a crowd alone, an empty and an outside box, and none at all."""
    for i in range(4):
        Image.new("RGB", (40, 30), (i * 60, 0, 255)).save(tmp_path / f"{i}.png")
    content = {
        "images": [{"id": 9 - i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 5, "bbox": [30, 20, 20, 20], "area": 77.0, "iscrowd": 0},
            {"id": 2, "image_id": 8, "category_id": 5, "bbox": [0, 0, 20, 20], "iscrowd": 1},
            {"id": 3, "image_id": 9, "category_id": 2, "bbox": [1, 2, 3, 4]},
            {"id": 4, "image_id": 7, "category_id": 2, "bbox": [1, 2, 0, 4]},
            {"id": 5, "image_id": 7, "category_id": 2, "bbox": [50, 2, 5, 5]},
        ],
    }
    write(tmp_path, content)
    return tmp_path


def write(folder, content):
    (folder / "boxes.json").write_text(content if isinstance(content, str) else json.dumps(content))


def index(folder):
    return index_coco(folder, folder / "boxes.json")


def test_boxes_labels_and_what_is_left_out(tree):
    found = index(tree)
    assert found.names == ["3.png", "2.png", "1.png", "0.png"]  # by id
    assert found.categories == [{"id": 2, "name": "ant"}, {"id": 5, "name": "cat"}]
    boxes, labels = found.objects(3)
    assert boxes.tolist() == [[30, 20, 40, 30], [1, 2, 4, 6]]  # cut at the border
    assert labels.tolist() == [2, 1]
    assert [len(found.objects(i)[0]) for i in range(3)] == [0, 0, 0]
    assert found.areas.tolist() == [0, 25, 400, 77, 12]  # of the file, else of the box
    usable = found.with_boxes()
    assert (len(usable), usable.left_out, usable.names) == (1, 3, ["0.png"])
    assert usable.objects(0)[0].tolist() == boxes.tolist()


def changed(content, where, **change):
    content[where][0].update(change)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", "cannot read .*boxes.json"),
        (lambda c: [], "has no list `images`"),
        (lambda c: {**c, "categories": {}}, "has no list `categories`"),
        (lambda c: {**c, "images": []}, "images is empty"),
        (lambda c: {**c, "images": [{"id": 1}]}, r"images\[0\] has no `file_name`"),
        (lambda c: {**c, "annotations": [{"image_id": 9}]}, r"annotations\[0\] has no `category_id`"),
        (lambda c: changed(c, "annotations", image_id=1), "image_id=1, which the file does not list"),
        (lambda c: changed(c, "annotations", category_id=1), "category_id=1, which the file does not list"),
        (lambda c: changed(c, "annotations", bbox=[1, 2, 3]), r"bbox=\[1, 2, 3\]: expected \[x, y, width, height\]"),
        (lambda c: changed(c, "annotations", bbox=[1, 2, 3, None]), "bbox="),
        (lambda c: changed(c, "images", id="9"), r"images\[0\] has id='9': it must be a whole number"),
        (lambda c: changed(c, "images", id=8), "id 8 stands twice in images"),
        (lambda c: changed(c, "images", file_name="x.png"), "names the image x.png, which is not in"),
    ],
)
def test_mistakes_name_file_key_and_fix(tree, change, message):
    write(tree, change(json.loads((tree / "boxes.json").read_text())))
    with pytest.raises(DataError, match=message):
        index(tree)


def test_missing_files(tree):
    with pytest.raises(DataError, match=r"annotations not found: .*none\.json"):
        index_coco(tree, tree / "none.json")
    with pytest.raises(DataError, match="folder of the images not found"):
        index_coco(tree / "none", tree / "boxes.json")
    content = json.loads((tree / "boxes.json").read_text())
    write(tree, {**content, "annotations": []})
    with pytest.raises(DataError, match="no image has a box"):
        index(tree).with_boxes()


@pytest.mark.parametrize("fault", ["size", "bytes"])
def test_a_corrupt_image_is_named(tree, fault):
    if fault == "size":
        Image.new("RGB", (30, 40)).save(tree / "2.png")
    else:
        (tree / "2.png").write_bytes(b"no image")
    batches = eval_stream(index(tree), workers=1)
    with pytest.raises(DataError, match=r"2\.png (has 30 x 40 pixels, .* says 40 x 30|is corrupt)"):
        list(batches)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    render_shapes(root, train=12, val=5, size=48)
    return root


def split(root, name):
    return index_coco(root / name, root / "annotations" / f"{name}.json")


def train_stream(found, *, rank=0, world_size=1, start=0, hflip=0.5, workers=0, seed=3, steps=6):
    sampler = TrainSampler(
        length=len(found), global_batch=4, rank=rank, world_size=world_size, accumulation=1, seed=seed,
        start_step=start, end_step=steps,
    )  # fmt: skip
    reader = DetectionReader(found, seed=seed, hflip=hflip)
    return train_batches(reader.read, sampler, scale_images, device=CPU, workers=workers)


def eval_stream(found, *, rank=0, world_size=1, workers=0):
    return eval_batches(
        DetectionReader(found).read_eval, len(found), scale_images,
        batch_size=2, rank=rank, world_size=world_size, device=CPU, workers=workers,
    )  # fmt: skip


def test_flip_turns_image_and_boxes(shapes):
    found = split(shapes, "train").with_boxes()
    for batch in train_stream(found, hflip=1.0, steps=2):
        for image, target, i in zip(batch["image"], batch["target"], batch["index"], strict=True):
            pixels = np.asarray(Image.open(found.name(i))).transpose(2, 0, 1)[:, :, ::-1].copy()
            torch.testing.assert_close(image, torch.from_numpy(pixels) / 255)
            boxes, labels = found.objects(i)
            assert target["boxes"].tolist() == flip_boxes(boxes, 48).tolist()
            assert target["labels"].tolist() == labels.tolist()
            assert target["image_id"] == found.ids[i]
    assert flip_boxes(np.array([[1.0, 2, 3, 4]]), 10).tolist() == [[7, 2, 9, 4]]


def test_draws_depend_on_seed_epoch_and_image_alone(shapes):
    found = split(shapes, "train").with_boxes()

    def seen(batches, step):
        return {
            (step + s, t["image_id"]): t["boxes"].tolist()
            for s, b in enumerate(batches)
            for t in b["target"]
        }  # fmt: skip

    whole = seen(train_stream(found), 0)
    halves = {**seen(train_stream(found, rank=0, world_size=2, workers=1), 0),
              **seen(train_stream(found, rank=1, world_size=2), 0)}  # fmt: skip
    assert whole == halves
    late = seen(train_stream(found, start=2), 2)
    assert late == {key: value for key, value in whole.items() if key[0] >= 2}
    plain = {int(i): found.objects(row)[0].tolist() for row, i in enumerate(found.ids)}
    flipped = Counter(boxes != plain[i] for (_, i), boxes in whole.items())
    assert flipped[True] > 3
    assert flipped[False] > 3
    assert seen(train_stream(found, seed=4), 0) != whole


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_reads_each_image_once(shapes, world_size):
    found = split(shapes, "val")
    ids = [
        target["image_id"]
        for rank in range(world_size)
        for batch in eval_stream(found, rank=rank, world_size=world_size)
        for target in batch["target"]
    ]
    assert sorted(ids) == found.ids.tolist()


# --- synthetic shapes -------------------------------------------------------------------------------------------------


def test_shapes_are_where_their_boxes_say(shapes):
    found = split(shapes, "train")
    for i in range(len(found)):
        pixels = np.asarray(Image.open(found.name(i))).astype(int)
        colored = np.ptp(pixels, axis=2) > 100  # the ground is gray
        assert len(found.objects(i)[0]) >= 1
        for x1, y1, x2, y2 in found.objects(i)[0].astype(int):
            inside = colored[y1:y2, x1:x2]
            assert inside.any(0).all()
            assert inside.any(1).all()
            colored[y1:y2, x1:x2] = False
        assert colored.sum() == 0


def test_make_data_keeps_the_shapes_it_made(tmp_path, capsys):
    def run(*arguments):
        return exit_code(make_data.main, ["shapes", tmp_path / "set", *arguments]), capsys.readouterr()

    assert run("--train", "2", "--val", "1")[0] == 0
    image = tmp_path / "set" / "train" / "000001.png"
    written = image.stat().st_mtime_ns
    code, printed = run("--train", "2", "--val", "1")
    assert (code, image.stat().st_mtime_ns) == (0, written)
    assert "2 training and 1 validation images of disc, square, triangle" in printed.out
    code, printed = run("--train", "3", "--val", "1")
    assert code == 2
    assert "was made with" in printed.err
    image.unlink()
    code, printed = run("--train", "2", "--val", "1")
    assert code == 2
    assert "incomplete" in printed.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize("arguments", [{"train": 0}, {"val": 0}, {"size": 8}])
def test_shapes_arguments(tmp_path, arguments):
    with pytest.raises(ValueError, match="must be at least"):
        render_shapes(tmp_path / "set", **arguments)


def test_sizes_that_are_none_are_read_from_the_files(tree, caplog):
    """As VGG's annotator exports them."""
    content = json.loads((tree / "boxes.json").read_text())
    for image in content["images"]:
        image["width"] = image["height"] = -1
    write(tree, content)
    found = index(tree)
    assert found.sizes.tolist() == [[40, 30]] * 4
    assert len(found.with_boxes()) == 1
    assert "3.png has width x height -1 x -1; 4 sizes are read from the image files" in caplog.text


def test_a_size_that_cannot_be_read_either_is_named(tree):
    content = json.loads((tree / "boxes.json").read_text())
    content["images"][1]["width"] = 0
    (tree / "1.png").write_bytes(b"junk")
    write(tree, content)
    with pytest.raises(DataError, match=r"1\.png has width x height 0 x 30, and the file, .*: write its size into"):
        index(tree)
