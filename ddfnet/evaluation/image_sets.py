"""The sets of `eval.py --sets`: their folders, their classes, and which labels count as correct."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddfnet.data.sources import ImageSource, open_source
from ddfnet.data.sources.classes import some_names
from ddfnet.data.sources.folder import class_folders, index_folder
from ddfnet.evaluation.class_names import imagenet_classes, in_order_of_number
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.text import plural

REAL_LABELS = "real.json"
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")  # in ImageNet's own file names: image n has the n-th list of labels


class _Known(NamedTuple):
    """A published set."""

    title: str
    source: str
    folders: tuple[str, ...]  # the first that exists is taken


KNOWN = {
    "val": _Known("ImageNet's validation set", "image-net.org, sorted into class folders", ("val",)),
    "real": _Known(
        "ImageNet ReaL", f"image-net.org, and {REAL_LABELS} at github.com/google-research/reassessed-imagenet", (".",)
    ),
    "v2": _Known(
        "ImageNet-V2, matched frequency",
        "huggingface.co/datasets/vaishaal/ImageNetV2",
        ("imagenetv2-matched-frequency-format-val",),
    ),
    "a": _Known("ImageNet-A", "github.com/hendrycks/natural-adv-examples", ("imagenet-a",)),
    "r": _Known("ImageNet-R", "github.com/hendrycks/imagenet-r", ("imagenet-r",)),
    "sketch": _Known("ImageNet-Sketch", "github.com/HaohanWang/ImageNet-Sketch", ("sketch", "imagenet-sketch")),
}


@dataclass(frozen=True)
class ImageSet:
    """Images to evaluate, and how to judge the predictions."""

    name: str  # that of the report's sub-folder
    index: ImageSource
    classes: list[str]  # in label order
    columns: list[int] | None = None  # outputs of the network that are scored, in label order; None: all of them
    accepted: Tensor | None = None  # correct labels, (N, most) int64 filled up with -1; None: the class folder's alone
    note: str = ""  # what a reader of the figures has to know


def find_sets(wanted: str, data: str | Path | None) -> dict[str, Path]:
    """Name to existing folder of `val,real,v2=/other/folder`: sets of `KNOWN` in `data`, or NAME=FOLDER.

    The folder of `real` holds `val/` and the labels.

    Raises:
        UserError: an unknown or repeated name, or a `data` that no set is looked for in.
        DataError: a folder or the labels are missing; says where they were looked for and where to get them.
    """
    sets: dict[str, Path] = {}
    missing = []
    for item in wanted.split(","):
        name, given, folder = (part.strip() for part in item.partition("="))
        if name in sets:
            raise UserError(f"--sets names {name} twice")
        could_be_a_folder = name and not name.startswith(".") and not set(name) & set("/\\")
        if not could_be_a_folder or (not folder if given else name not in KNOWN):
            raise UserError(
                f"--sets: {item.strip()!r} is not a set: give {', '.join(KNOWN)}, or NAME=FOLDER with the folder of "
                "one or with class folders of your own"
            )
        if not given and data is None:
            raise UserError(f"--sets {name} needs --data FOLDER, which holds it, or its own folder: {name}=FOLDER")
        folders = [Path(folder)] if given or data is None else [Path(data, known) for known in KNOWN[name].folders]
        sets[name] = next((folder for folder in folders if not _absent(name, folder)), folders[0])
        if _absent(name, sets[name]):
            missing.append(_missing(name, folders))
    if data is not None and all("=" in item for item in wanted.split(",")):
        raise UserError(f"--data {data} is not used: every set of --sets has its own folder. Leave --data out")
    if missing:
        raise DataError("; ".join(missing))
    return sets


def load_set(name: str, folder: Path, classes: Sequence[str], *, outputs: int | None = None) -> ImageSet:
    """A set of `find_sets` for a network with these classes, in the order of its outputs.

    Of more `outputs` than classes the others compete, and are wrong, but not in `a`, `r` and sets of one's own.
    DataError where the class folders or the labels do not fit these classes.
    """
    classes = list(classes)
    if name == "v2":
        return _numbered(name, folder, classes)
    if name == "real":
        return _reassessed(name, folder, classes)
    if name in ("val", "sketch"):
        return ImageSet(name, open_source(folder, classes=classes), classes)
    return _subset(name, folder, classes, outputs or len(classes))


def _absent(name: str, folder: Path) -> list[Path]:
    """The parts of a set that are not there."""
    parts = [folder / "val", folder / REAL_LABELS] if name == "real" else [folder]
    return [part for part in parts if not part.exists()]


def _missing(name: str, folders: list[Path]) -> str:
    looked = " or ".join(" and ".join(map(str, _absent(name, folder))) for folder in folders)
    if name not in KNOWN:
        return f"set {name} is not at {looked}: name its folder with --sets {name}=FOLDER"
    get = f"get it from {KNOWN[name].source}, or name its folder with --sets {name}=FOLDER"
    return f"set {name} ({KNOWN[name].title}) is not at {looked}: {get}"


def _subset(name: str, folder: Path, classes: list[str], outputs: int) -> ImageSet:
    """Class folders that are some of the network's classes, or all: only their outputs compete."""
    folders = class_folders(folder)
    unknown = sorted(set(folders) - set(classes))
    if unknown:
        raise DataError(
            f"set {name}: {len(unknown)} class folders of {folder} are not among the {len(classes)} classes of the "
            f"checkpoint: {some_names(unknown)}"
        )
    # With all of ImageNet to choose from, the authors' 200 classes must be there: fewer would be an easier task.
    whole = name in ("a", "r") and set(classes) == set(imagenet_classes())
    wanted = set(imagenet_classes(name) if whole else folders)
    columns = [i for i, cls in enumerate(classes) if cls in wanted]
    scored = [classes[i] for i in columns]
    index = index_folder(folder, classes=scored)
    if len(scored) == outputs:
        return ImageSet(name, index, scored)
    nameless = f", {outputs - len(classes)} of them without a class name," if outputs > len(classes) else ""
    rest = outputs - len(scored)
    others = f"the checkpoint's other {plural(rest, 'output')}{nameless} {'does' if rest == 1 else 'do'} not compete."
    note = f"Scored over its {plural(len(scored), 'class', 'classes')}: {others}"
    return ImageSet(name, index, scored, columns=columns, note=note)


def _numbered(name: str, folder: Path, classes: list[str]) -> ImageSet:
    """Class folders 0, 1, ...: numbers of the sorted class names, unless they are those names themselves."""
    if set(class_folders(folder)) == set(classes):
        return ImageSet(name, index_folder(folder, classes=classes), classes)
    number = {cls: str(i) for i, cls in enumerate(in_order_of_number(classes))}
    index = index_folder(folder, classes=[number[cls] for cls in classes])
    return ImageSet(name, replace(index, classes=classes), classes)


def _reassessed(name: str, folder: Path, classes: list[str]) -> ImageSet:
    """The validation images under new labels, several or none for an image."""
    index = index_folder(folder / "val", classes=classes)
    lists = _read_labels(folder / REAL_LABELS, len(classes))
    numbers = _numbers(index)
    if sorted(numbers) != list(range(len(lists))):
        raise DataError(
            f"{folder / REAL_LABELS} has labels of {len(lists)} images, but {folder / 'val'} holds {len(numbers)} "
            f"({len(set(numbers))} different numbers, up to {max(numbers) + 1}): both must be of the whole validation "
            "set"
        )
    by_name = [classes.index(cls) for cls in in_order_of_number(classes)]  # the file's labels number these
    labels = {i: [by_name[label] for label in lists[number]] for i, number in enumerate(numbers) if lists[number]}
    if not labels:
        raise DataError(f"{folder / REAL_LABELS} has no labels at all: get it again")
    agree = sum(index.label(i) in accepted for i, accepted in labels.items())
    if 2 * agree < len(labels):
        # A few labels are corrections; where most are, the lists have gone to the wrong images or classes.
        raise DataError(
            f"the labels of {folder / REAL_LABELS} include the class folder of only {agree} of "
            f"{plural(len(labels), 'image')}: "
            "they are of other images, or the checkpoint's class names, once sorted, are not in ImageNet's order "
            "(that of WordNet ids)"
        )
    accepted = torch.full((len(labels), max(map(len, labels.values()))), -1)
    target = np.empty(len(labels), np.int32)
    for row, (i, own) in enumerate(labels.items()):
        accepted[row, : len(own)] = torch.tensor(own)
        # For tables by class an image needs one label: that of its folder, unless it was withdrawn.
        target[row] = index.label(i) if index.label(i) in own else own[0]
    note = (
        f"Correct is any label of the image's list (Beyer et al. 2020, arXiv 2006.07159); {len(numbers) - len(labels)} "
        f"of {len(numbers)} images have none and are left out. Tables by class count an image under the class of its "
        "folder, or under the first of its list if that is not in it."
    )
    # The index of the images that have labels, under the new ones.
    paths = [index.blob[index.offsets[i] : index.offsets[i + 1]] for i in labels]
    offsets = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    chosen = replace(index, blob=np.concatenate(paths), offsets=offsets, labels=target)
    return ImageSet(name, chosen, classes, accepted=accepted, note=note)


def _numbers(index: ImageSource) -> list[int]:
    """For each image its position in the list of labels, from the number in its file name."""
    numbers = []
    for i in range(len(index)):
        number = _NUMBER.search(Path(index.name(i)).name)
        if number is None:
            raise DataError(
                f"{index.name(i)}: set real finds an image's labels by the number in ImageNet's own file name "
                "(ILSVRC2012_val_00000001.JPEG), which this name lacks: give the images under their own names"
            )
        numbers.append(int(number[1]) - 1)
    return numbers


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
