"""The sets of `eval.py --sets`: where they lie, which classes they have, and which answers count as right."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddfnet.data.sources import ImageSource, open_source
from ddfnet.data.sources.folder import FolderIndex, class_folders, index_folder, some_names
from ddfnet.evaluation.class_names import imagenet_classes, in_order_of_number
from ddfnet.utils.errors import DataError, UserError

REAL_LABELS = "real.json"
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")  # in ImageNet's own file names: image n has the n-th list of labels


@dataclass(frozen=True)
class _Known:
    """A published set: what it is called, its folders (the first that exists is taken), and where to get it."""

    title: str
    folders: tuple[str, ...]
    source: str


KNOWN = {
    "val": _Known("ImageNet's validation set", ("val",), "image-net.org, sorted into class folders"),
    "real": _Known(
        "ImageNet ReaL", (".",), f"image-net.org, and {REAL_LABELS} at github.com/google-research/reassessed-imagenet"
    ),
    "v2": _Known(
        "ImageNet-V2, matched frequency",
        ("imagenetv2-matched-frequency-format-val",),
        "huggingface.co/datasets/vaishaal/ImageNetV2",
    ),
    "a": _Known("ImageNet-A", ("imagenet-a",), "github.com/hendrycks/natural-adv-examples"),
    "r": _Known("ImageNet-R", ("imagenet-r",), "github.com/hendrycks/imagenet-r"),
    "sketch": _Known("ImageNet-Sketch", ("sketch", "imagenet-sketch"), "github.com/HaohanWang/ImageNet-Sketch"),
}


@dataclass(frozen=True)
class ImageSet:
    """Predictions to evaluate, and how to judge the answers.

    Attributes:
        name: short name, that of the report's sub-folder.
        index: the images with their labels.
        classes: names in label order.
        columns: outputs of the network that are scored, in label order; None: all of them.
        accepted: labels that count as right, (N, most) int64 filled up with -1; None: that of the class folder alone.
        note: what a reader of the figures has to know.
    """

    name: str
    index: ImageSource
    classes: list[str]
    columns: list[int] | None = None
    accepted: Tensor | None = None
    note: str = ""


def find_sets(wanted: str, data: str | Path | None) -> dict[str, Path]:
    """The folders of `val,real,v2=/other/folder`.

    Args:
        wanted: names of `KNOWN`, or NAME=FOLDER for another place or a set of one's own, comma-separated.
        data: folder that holds those without a place.

    Returns:
        Name to existing folder; that of `real` is the folder that holds `val/` and the labels.

    Raises:
        UserError: an unknown or repeated name, or a `data` that no set is looked for in.
        DataError: a folder or the labels are missing; says where they were looked for and where to get them.
    """
    found: dict[str, Path] = {}
    missing = []
    for item in wanted.split(","):
        name, given, place = (part.strip() for part in item.partition("="))
        if name in found:
            raise UserError(f"--sets names {name} twice")
        if (not given and name not in KNOWN) or not _can_be_a_folder(name) or (given and not place):
            raise UserError(
                f"--sets: {item.strip()!r} is not a set: give {', '.join(KNOWN)}, or NAME=FOLDER with the place of one "
                "or with class folders of your own"
            )
        if not given and data is None:
            raise UserError(f"--sets {name} needs --data FOLDER, which holds it, or its own place: {name}=FOLDER")
        places = [Path(place)] if given else [Path(data, folder) for folder in KNOWN[name].folders]
        found[name] = next((place for place in places if _is_there(name, place)), places[0])
        if not _is_there(name, found[name]):
            missing.append(_missing(name, places))
    if data is not None and all("=" in item for item in wanted.split(",")):
        raise UserError(f"--data {data} is not used: every set of --sets has its own place. Leave --data out")
    if missing:
        raise DataError("; ".join(missing))
    return found


def load_set(name: str, folder: Path, classes: Sequence[str], *, outputs: int | None = None) -> ImageSet:
    """A set, ready to be evaluated.

    Args:
        name, folder: see `find_sets`.
        classes: class names of the network, in the order of its outputs.
        outputs: how many it has, if more than class names: the others compete as wrong answers, but not in `a`, `r` and
            sets of one's own.

    Raises:
        DataError: the class folders or the labels do not fit these classes.
    """
    classes = list(classes)
    if name == "v2":
        return _numbered(name, folder, classes)
    if name == "real":
        return _reassessed(name, folder, classes)
    if name in ("val", "sketch"):
        return ImageSet(name, open_source(folder, classes=classes), classes)
    return _subset(name, folder, classes, outputs or len(classes))


def _can_be_a_folder(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\")


def _is_there(name: str, place: Path) -> bool:
    if name == "real":
        return (place / "val").is_dir() and (place / REAL_LABELS).is_file()
    return place.is_dir()


def _missing(name: str, places: list[Path]) -> str:
    looked = [str(place) for place in places]
    if name == "real":
        parts = [place / part for place in places for part in ("val", REAL_LABELS)]
        looked = [" and ".join(str(part) for part in parts if not part.exists())]
    title, source = (KNOWN[name].title, KNOWN[name].source) if name in KNOWN else ("", "")
    return (
        f"set {name}{f' ({title})' if title else ''} is not at {' or '.join(looked)}"
        f"{f': get it from {source}, or name its place' if source else ': name its place'} with --sets {name}=FOLDER"
    )


def _subset(name: str, folder: Path, classes: list[str], outputs: int) -> ImageSet:
    """Class folders that are some of the network's classes, or all: only their outputs compete."""
    found = class_folders(folder)
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise DataError(
            f"set {name}: {len(unknown)} class folders of {folder} are not among the {len(classes)} classes of the "
            f"checkpoint: {some_names(unknown)}"
        )
    # With all of ImageNet to choose from, the authors' 200 classes must be there: fewer would be an easier task.
    whole = name in ("a", "r") and set(classes) == set(imagenet_classes())
    wanted = set(imagenet_classes(name) if whole else found)
    scored = [cls for cls in classes if cls in wanted]
    index = index_folder(folder, classes=scored)
    if len(scored) == outputs:
        return ImageSet(name, index, scored)
    nameless = outputs - len(classes)
    note = (
        f"Scored over its {len(scored)} classes: the checkpoint's other {outputs - len(scored)} output(s)"
        f"{f', {nameless} of them without a class name,' if nameless else ''} do not compete."
    )
    place = {cls: i for i, cls in enumerate(classes)}
    return ImageSet(name, index, scored, columns=[place[cls] for cls in scored], note=note)


def _numbered(name: str, folder: Path, classes: list[str]) -> ImageSet:
    """Class folders 0, 1, ...: numbers of the sorted class names, unless they are those names themselves."""
    if set(class_folders(folder)) == set(classes):
        return ImageSet(name, index_folder(folder, classes=classes), classes)
    number = {cls: str(i) for i, cls in enumerate(in_order_of_number(classes))}
    index = index_folder(folder, classes=[number[cls] for cls in classes])
    return ImageSet(name, replace(index, classes=classes), classes)


def _reassessed(name: str, folder: Path, classes: list[str]) -> ImageSet:
    """The validation images under new labels, several or none for a image."""
    index = index_folder(folder / "val", classes=classes)
    lists = _read_labels(folder / REAL_LABELS, len(classes))
    place = _places_in_list(index)
    if sorted(place) != list(range(len(lists))):
        raise DataError(
            f"{folder / REAL_LABELS} has labels of {len(lists)} predictions, but {folder / 'val'} holds {len(place)} "
            f"({len(set(place))} different numbers, up to {max(place) + 1}): both must be of the whole validation set"
        )
    by_name = [classes.index(cls) for cls in in_order_of_number(classes)]  # the file's labels number these
    labels: dict[int, list[int]] = {
        i: [by_name[label] for label in lists[number]] for i, number in enumerate(place) if lists[number]
    }
    if not labels:
        raise DataError(f"{folder / REAL_LABELS} has no labels at all: get it again")
    agree = sum(index.label(i) in accepted for i, accepted in labels.items())
    if 2 * agree < len(labels):
        # A few labels are corrections; where most are, the lists have gone to the wrong images or classes.
        raise DataError(
            f"the labels of {folder / REAL_LABELS} include the class folder of only {agree} of {len(labels)} predictions: "
            "they are of other predictions, or the checkpoint's class names, once sorted, are not in ImageNet's order "
            "(that of WordNet ids)"
        )
    kept = sorted(labels)
    accepted = torch.full((len(kept), max(map(len, labels.values()))), -1)
    target = np.empty(len(kept), np.int32)
    for row, i in enumerate(kept):
        accepted[row, : len(labels[i])] = torch.tensor(labels[i])
        # For tables by class a image needs one label: that of its folder, unless it was withdrawn.
        target[row] = index.label(i) if index.label(i) in labels[i] else labels[i][0]
    note = (
        f"Right is any label of the image's list (Beyer et al. 2020, arXiv 2006.07159); {len(place) - len(kept)} of "
        f"{len(place)} images have none and are left out. Tables by class count a image under the class of its "
        "folder, or under the first of its list if that is not in it."
    )
    return ImageSet(name, _selected(index, kept, target), classes, accepted=accepted, note=note)


def _places_in_list(index: ImageSource) -> list[int]:
    """Place of each image in the list of labels, from the number in its file name."""
    places = []
    for i in range(len(index)):
        number = _NUMBER.search(Path(index.name(i)).name)
        if number is None:
            raise DataError(
                f"{index.name(i)}: set real finds a image's labels by the number in ImageNet's own file name "
                "(ILSVRC2012_val_00000001.JPEG), which this name lacks: give the images under their own names"
            )
        places.append(int(number[1]) - 1)
    return places


def _read_labels(path: Path, classes: int) -> list[list[int]]:
    try:
        lists = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): get it again") from None
    fits = isinstance(lists, list) and all(
        isinstance(item, list) and all(type(label) is int and 0 <= label < classes for label in item) for item in lists
    )
    if not fits:
        raise DataError(f"{path} must be a list with a list of labels from 0 to {classes - 1} for each image")
    return lists


def _selected(index: FolderIndex, kept: list[int], labels: np.ndarray) -> FolderIndex:
    """An index of some of the predictions, under other labels."""
    paths = [index.blob[index.offsets[i] : index.offsets[i + 1]] for i in kept]
    offsets = np.concatenate(([0], np.cumsum([len(path) for path in paths]))).astype(np.int64)
    return replace(index, blob=np.concatenate(paths), offsets=offsets, labels=labels)
