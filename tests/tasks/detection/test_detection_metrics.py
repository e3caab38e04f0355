"""COCO's mean average precision: by hand, and the same however the images are shared."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.tasks.detection.coco import index_coco
from ddfnet.tasks.detection.metrics import METRICS, DetectionEvaluator

pytest.importorskip("pycocotools")


def make_index(folder, annotations, images=3, categories=2, size=200):
    (folder / "images").mkdir()
    for i in range(images):
        Image.new("RGB", (size, size)).save(folder / "images" / f"{i}.png")
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": size, "height": size} for i in range(images)],
        "categories": [{"id": 7 * (i + 1), "name": f"class {i}"} for i in range(categories)],  # gaps, as in COCO
        "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations)],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return index_coco(folder / "images", folder / "boxes.json")


def box(image, category, bbox, crowd=0):
    return {"image_id": image, "category_id": category, "bbox": bbox, "iscrowd": crowd}


def record(image, *found):
    boxes, scores, labels = zip(*found, strict=True) if found else ((), (), ())
    return (
        image,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(labels, dtype=np.int64),
    )


def metrics(index, *records):
    evaluator = DetectionEvaluator(index)
    return evaluator.compute([list(records)])


def test_by_hand(tmp_path):
    """Class 1: two objects, found with IoU 1 (score 0.9) and 0.8 (0.7), and one false alarm between them (0.8).

    Up to threshold 0.8 (7 of 10) the list is hit, miss, hit: precision 1 up to recall 1/2, then 2/3. Of the 101 recall
    levels 51 lie at or below 0.5: (51 + 50 * 2/3) / 101. Above 0.8 only the first is a hit: 51 / 101.
    Class 2: one object, found exactly: 1 at each threshold.
    """
    index = make_index(
        tmp_path, [box(10, 7, [0, 0, 100, 100]), box(11, 7, [0, 0, 50, 50]), box(12, 14, [10, 10, 20, 20])]
    )
    found = metrics(
        index,
        record(10, ([0, 0, 100, 100], 0.9, 1), ([120, 120, 180, 180], 0.8, 1)),
        record(11, ([0, 0, 50, 40.01], 0.7, 1)),
        record(12, ([10, 10, 30, 30], 0.6, 2)),
    )
    first, second = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert found["map50"] == pytest.approx(100 * (first + 1) / 2)
    assert found["map75"] == pytest.approx(100 * (first + 1) / 2)
    assert found["map"] == pytest.approx(100 * ((7 * first + 3 * second) / 10 + 1) / 2)
    assert found["map_small"] == pytest.approx(100)  # the object of class 2, 20 x 20
    assert found["map_large"] == pytest.approx(100)  # 100 x 100, found exactly; the false alarm is of medium size
    assert found["map_medium"] == pytest.approx(100 * (7 * 0.5 + 3 * 0) / 10)  # always after the false alarm
    assert found["n"] == 3
    assert list(found) == [*METRICS, "n"]


def test_nothing_found_and_nothing_there(tmp_path):
    index = make_index(tmp_path, [box(10, 7, [0, 0, 100, 100])])
    found = metrics(index, record(10), record(11))
    assert found == {**dict.fromkeys(("map", "map50", "map75", "map_large"), 0.0), "map_small": -1.0,
                     "map_medium": -1.0, "n": 2}  # fmt: skip


def test_a_first_and_last_object_counts_as_matched(tmp_path):
    """pycocotools takes an annotation of id 0 for none; ours are numbered anew."""
    index = make_index(tmp_path, [box(10, 7, [0, 0, 100, 100])], images=1)
    assert metrics(index, record(10, ([0, 0, 100, 100], 0.5, 1)))["map"] == pytest.approx(100)


def test_a_detection_in_a_crowd_is_not_wrong(tmp_path):
    annotations = [box(10, 7, [0, 0, 50, 50]), box(10, 7, [100, 100, 90, 90], crowd=1)]
    index = make_index(tmp_path, annotations, images=1)
    found = metrics(index, record(10, ([110, 110, 150, 150], 0.9, 1), ([0, 0, 50, 50], 0.5, 1)))
    assert found["map"] == pytest.approx(100)


def test_independent_of_processes_and_order(tmp_path):
    rng = np.random.default_rng(0)
    boxes = [[*rng.integers(0, 100, 2).tolist(), *rng.integers(20, 90, 2).tolist()] for _ in range(40)]
    index = make_index(tmp_path, [box(10 + i % 8, 7 * (1 + i % 2), b) for i, b in enumerate(boxes)], images=8)
    records = []
    for i in range(8):
        own = [b for k, b in enumerate(boxes) if k % 8 == i]
        moved = np.array(own) + rng.normal(0, 4, (len(own), 4))
        # equal scores: their order must come from the images and not from who saw them
        records.append(record(10 + i, *(([x, y, x + w, y + h], 0.5, 1 + i % 2) for x, y, w, h in moved)))
    evaluator = DetectionEvaluator(index)
    expected = evaluator.compute([records])
    assert 0 < expected["map"] < 100
    for world_size in (2, 3, 5):
        assert evaluator.compute([records[rank::world_size] for rank in range(world_size)]) == expected
    assert evaluator.compute([records[::-1]]) == expected


def test_only_images_seen_count(tmp_path):
    index = make_index(tmp_path, [box(10, 7, [0, 0, 100, 100]), box(11, 7, [0, 0, 100, 100])])
    assert metrics(index, record(10, ([0, 0, 100, 100], 0.5, 1)))["map"] == pytest.approx(100)
    with pytest.raises(RuntimeError, match="1 images were evaluated twice"):
        metrics(index, record(10), record(10))


def test_images_do_not_meet_in_the_network(tmp_path):
    """One at a time: padded to a common size, they would change each other's result."""
    index = make_index(tmp_path, [box(10, 7, [0, 0, 100, 100])])
    calls = []

    def model(images):
        calls.append([tuple(image.shape) for image in images])
        one = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
        return [{"boxes": one, "scores": torch.ones(1), "labels": torch.ones(1, dtype=torch.int64)}] * len(images)

    evaluator = DetectionEvaluator(index)
    images = [torch.zeros(3, 8, 9), torch.zeros(3, 6, 5)]
    evaluator.update(model, {"image": images, "target": [{"image_id": 10}, {"image_id": 11}]})
    assert calls == [[(3, 8, 9)], [(3, 6, 5)]]
    assert evaluator.compute([evaluator.state()])["n"] == 2
