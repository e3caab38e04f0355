"""Detection data in COCO's format: images in folders, boxes in one JSON file."""

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddfnet.data.decode import decode_error
from ddfnet.data.image_file import image_size
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

_log = logging.getLogger("ddfnet")
_KEYS = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_WORDS = {int: "a whole number", str: "text", list: "a list"}


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images and boxes of one annotation file, in arrays: forked workers share them."""

    folder: Path  # where the images are
    file: Path  # the annotations
    names: list[str]  # N file names below the folder, in order of the ids
    ids: np.ndarray  # int64 (N,), rising
    sizes: np.ndarray  # int64 (N, 2), width and height in pixels
    offsets: np.ndarray  # int64 (N + 1,), the boxes of image i are those from offsets[i] to offsets[i + 1]
    boxes: np.ndarray  # float64 (M, 4), x, y, width and height in pixels, as in the file
    labels: np.ndarray  # int64 (M,), position of the category among all, from 1; 0 is the background
    areas: np.ndarray  # float64 (M,), square pixels: of the outline in COCO, of the box where the file has none
    crowd: np.ndarray  # bool (M,), around many objects: not trained on, detections in them are not counted as wrong
    categories: list[dict[str, Any]]  # {"id", "name"} in order of the ids
    left_out: int = 0  # images that `with_boxes` left out

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return str(self.folder / self.names[i])

    def objects(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Objects to learn from in image i: boxes float32 (n, 4) as x1, y1, x2, y2 and labels int64 (n,).

        As in torchvision's reference: crowds are dropped, boxes are cut at the border, empty ones dropped.
        """
        part = slice(self.offsets[i], self.offsets[i + 1])
        corners = self.boxes[part].copy()
        corners[:, 2:] += corners[:, :2]
        corners = np.clip(corners, 0, np.tile(self.sizes[i], 2)).astype(np.float32)
        keep = ~self.crowd[part] & (corners[:, 2:] > corners[:, :2]).all(1)
        return corners[keep], self.labels[part][keep]

    def with_boxes(self) -> "CocoIndex":
        """The images that have something to learn; DataError where there is none."""
        keep = [i for i in range(len(self)) if len(self.objects(i)[0])]
        if not keep:
            raise DataError(f"{self.file}: no image has a box to learn from: give another file")
        rows = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in keep]
        chosen = np.concatenate(rows)
        return replace(
            self,
            names=[self.names[i] for i in keep],
            ids=self.ids[keep],
            sizes=self.sizes[keep],
            offsets=np.cumsum([0, *map(len, rows)]),
            left_out=len(self) - len(keep),
            **{key: getattr(self, key)[chosen] for key in ("boxes", "labels", "areas", "crowd")},
        )


def index_coco(folder: str | Path, annotations: str | Path) -> CocoIndex:
    """Index of an annotation file in COCO's format; DataError where folder or file is missing, the file is not what it
    should be (names the key), or its first or last image is not in the folder."""
    folder, file = Path(folder), Path(annotations)
    content = _read(file)
    images = sorted(content["images"], key=lambda image: image["id"])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = np.array([image["id"] for image in images], dtype=np.int64)
    for key, entries in (("images", images), ("categories", categories)):
        if not entries:
            raise DataError(f"{file}: {key} is empty: give a file with at least one entry")
        twice = [i for i, count in Counter(entry["id"] for entry in entries).items() if count > 1]
        if twice:
            raise DataError(f"{file}: id {twice[0]} stands twice in {key}: give each entry an id of its own")
    if not folder.is_dir():
        raise DataError(f"folder of the images not found: {folder}; {file} names {plural(len(images), 'file')} in it")
    for image in (images[0], images[-1]):
        if not (folder / image["file_name"]).is_file():
            raise DataError(f"{file} names the image {image['file_name']}, which is not in {folder}: name its folder")

    _complete_sizes(images, folder, file)
    row_of = {int(i): row for row, i in enumerate(ids)}
    label = {category["id"]: row + 1 for row, category in enumerate(categories)}
    objects = content["annotations"]
    for entry in objects:
        for key, known in (("image_id", row_of), ("category_id", label)):
            if entry[key] not in known:
                raise DataError(f"{file}: an annotation has {key}={entry[key]!r}, which the file does not list")
    objects = sorted(objects, key=lambda entry: row_of[entry["image_id"]])
    boxes = _boxes(objects, file)
    owners = np.array([row_of[entry["image_id"]] for entry in objects], dtype=np.int64)
    return CocoIndex(
        folder=folder,
        file=file,
        names=[image["file_name"] for image in images],
        ids=ids,
        sizes=np.array([(image["width"], image["height"]) for image in images], dtype=np.int64),
        offsets=np.searchsorted(owners, np.arange(len(images) + 1)),
        boxes=boxes,
        labels=np.array([label[entry["category_id"]] for entry in objects], dtype=np.int64),
        areas=np.array([e.get("area", w * h) for e, (w, h) in zip(objects, boxes[:, 2:], strict=True)], np.float64),
        crowd=np.array([bool(entry.get("iscrowd", 0)) for entry in objects], dtype=bool),
        categories=[{"id": category["id"], "name": category["name"]} for category in categories],
    )


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    if not file.is_file():
        raise DataError(f"annotations not found: {file}; expected a JSON file in COCO's format")
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} ({error}): expected a JSON file in COCO's format") from None
    for name, keys in _KEYS.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{file} has no list `{name}`: expected annotations of objects in COCO's format")
        for row, entry in enumerate(entries):
            for key, kind in keys.items():
                if not isinstance(entry, dict) or key not in entry:
                    raise DataError(f"{file}: {name}[{row}] has no `{key}`: add it")
                if not isinstance(entry[key], kind):
                    raise DataError(f"{file}: {name}[{row}] has {key}={entry[key]!r}: it must be {_WORDS[kind]}")
    return content


def _complete_sizes(images: list[dict[str, Any]], folder: Path, file: Path) -> None:
    """Reads sizes that are no sizes from the image files: some tools write -1 for all of them."""
    without = [image for image in images if min(image["width"], image["height"]) < 1]
    stated = [f"{image['file_name']} has width x height {image['width']} x {image['height']}" for image in without]
    for image, words in zip(without, stated, strict=True):
        try:
            with (folder / image["file_name"]).open("rb") as content:
                image["width"], image["height"] = image_size(content)
        except Exception as error:
            reason = f"the file, where it would be read, cannot be used ({decode_error(error)})"
            raise DataError(f"{file}: {words}, and {reason}: write its size into the annotations") from None
    if without:
        _log.warning("%s: %s; %d sizes are read from the image files", file, stated[0], len(without))


def _boxes(objects: list[dict[str, Any]], file: Path) -> np.ndarray:
    for entry in objects:
        box = entry["bbox"]
        if len(box) != 4 or not all(isinstance(side, int | float) and math.isfinite(side) for side in box):
            raise DataError(
                f"{file}: an annotation of image {entry['image_id']} has bbox={box!r}: "
                "expected [x, y, width, height] in pixels"
            )
    return np.array([entry["bbox"] for entry in objects], dtype=np.float64).reshape(-1, 4)
