"""Verification of a dataset before a long training is spent on it."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo
from torch.utils.data import DataLoader, Dataset

from ddfnet.data.decode import decode_error, verdict
from ddfnet.data.image_file import MAX_PIXELS, as_8_bit, is_16_bit_gray, load_image
from ddfnet.data.sources import ImageSource, SourceConfig, open_part, split_path
from ddfnet.data.sources.classes import some_names
from ddfnet.data.sources.folder import files_not_counted
from ddfnet.data.sources.label_sets import LabelSets, class_names, unused_lines
from ddfnet.data.sources.misplaced import refuse_dataset_below
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}

_EXIF_ORIENTATION = 0x0112
_MOST_CORRUPT = 100  # corrupt files listed one by one; the rest is counted


@dataclass
class SplitReport:
    """Contents of one split."""

    images_per_class: dict[str, int]  # number of images of each class; one image may have several classes, or none
    images: int
    corrupt: list[tuple[str, str]] = field(default_factory=list)  # (name, reason) of images that do not decode
    remarks: dict[str, list[str]] = field(default_factory=dict)  # kind -> names of unusual but usable images
    not_counted: str = ""  # files that hold images, too, and are left out


@dataclass
class TreeReport:
    """Result of `check_tree`: one report per split ("train", "val", or "images" for a single folder), problems, and
    what is unusual about the whole."""

    splits: dict[str, SplitReport] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_tree(
    root: str | os.PathLike,
    *,
    workers: int = 1,
    imagenet: bool = False,
    config: SourceConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_pixels: float = MAX_PIXELS,
) -> TreeReport:
    """Verifies the splits train and val of `root` (see `split_path`), or `root` itself if it has neither.

    Looked for: classes, empty ones, classes that differ between train and val, images that do not decode. CMYK,
    16-bit and 32-bit, EXIF-rotated and wrongly named images are remarked upon only: they are usable, and ImageNet has
    some. So are files of other kinds that are left out, images without any class, and lines of a file of labels that
    belong to no image.

    Args:
        root: the dataset; DataError where it is nothing that could be a source.
        workers: decoding processes; 1 or less decodes in this one.
        imagenet: also compare with ImageNet-1k's 1000 synsets and its known numbers of images.
        config: what the source is, where that is not to be recognized.
        max_pixels: of the largest image that is read.
        progress: called now and then with (images done, images in all).
    """
    root = Path(root)
    report = TreeReport()
    config = config or SourceConfig()
    sources: list[ImageSource] = []
    present = {split: path for split in ("train", "val") if (path := split_path(root, split)) is not None}
    if not present:
        refuse_dataset_below(root, config)
    if len(present) == 1:
        report.problems.append(f"{root} has a folder {next(iter(present))} but not the other one of train and val")
    for split, path in present.items() or [("images", root)]:
        try:
            own = config.model_copy(update={"val_labels": None}) if split == "train" else config
            source = open_part(root, path, split, allow_empty=True, config=own)
        except DataError as error:
            if not present:
                raise
            report.problems.append(str(error))
            continue
        sources.append(source)
        report.splits[split] = _check_split(split, source, workers, progress, report.problems, max_pixels)
    is_whole = len(sources) == max(1, len(present))
    if config.labels is not None and is_whole and (unused := unused_lines(str(root), sources, config)):
        report.remarks.append(unused)
    if len(report.splits) == 2:
        train, val = (set(report.splits[split].images_per_class) for split in ("train", "val"))
        if config.allow_missing_val_classes:
            _compare_classes("val", val & train, "train", train, report.remarks)
            val |= train
        _compare_classes("val", val, "train", train, report.problems)
    if imagenet:
        synsets = set(ImageNetInfo("imagenet-1k").label_names())
        for split, contents in report.splits.items():
            _compare_classes(split, set(contents.images_per_class), "ImageNet-1k", synsets, report.problems)
            expected = [IMAGENET_COUNTS[split]] if split in IMAGENET_COUNTS else sorted(IMAGENET_COUNTS.values())
            if contents.images not in expected:
                known = " or ".join(f"{count:,}" for count in expected)
                report.problems.append(f"{split}: {plural(contents.images, 'image')}, ImageNet-1k has {known}")
    return report


def _check_split(
    split: str,
    source: ImageSource,
    workers: int,
    progress: Callable[[int, int], None] | None,
    problems: list[str],
    max_pixels: float,
) -> SplitReport:
    if isinstance(source, LabelSets):
        counts = source.counts()
    else:
        counts = np.bincount([source.label(i) for i in range(len(source))], minlength=len(source.classes))
    report = SplitReport(dict(zip(class_names(source), counts.tolist(), strict=True)), len(source))
    if isinstance(source, LabelSets):
        without = np.flatnonzero(~source.members.any(1)[source.labels]).tolist()
        if without:
            report.remarks["image without any class"] = [source.name(i) for i in without]
    if others := getattr(source, "others", None):
        report.not_counted = files_not_counted(others)
    empty = [name for name, count in report.images_per_class.items() if not count]
    if empty:
        problems.append(f"{split}: no images in {plural(len(empty), 'class', 'classes')}: {some_names(empty)}")
    order = source.disk_order().tolist()
    workers = workers if workers > 1 else 0
    loader = DataLoader(
        _Inspection(source, max_pixels), batch_size=32, sampler=order, collate_fn=list, num_workers=workers
    )
    for done, (name, error, remarks) in enumerate((result for batch in loader for result in batch), 1):
        if error:
            report.corrupt.append((name, error))
        for kind in remarks:
            report.remarks.setdefault(kind, []).append(name)
        if progress is not None and (done % 100 == 0 or done == len(source)):
            progress(done, len(source))
    problems += [f"{split}: {name} is {verdict(error)} ({error})" for name, error in report.corrupt[:_MOST_CORRUPT]]
    if len(report.corrupt) > _MOST_CORRUPT:
        problems.append(f"{split}: {len(report.corrupt) - _MOST_CORRUPT} more images are corrupt")
    return report


class _Inspection(Dataset):
    """For each image its name, why it is corrupt or an empty string, and what is unusual about it."""

    def __init__(self, source: ImageSource, max_pixels: float) -> None:
        self.source, self.max_pixels = source, max_pixels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[str, str, list[str]]:
        name = self.source.name(i)
        try:
            image = load_image(self.source.read(i), self.max_pixels)
            as_8_bit(image)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        except Exception as error:
            return name, decode_error(error), []
        extension = os.path.splitext(name)[1].lower()
        kind = "JPEG" if image.format == "MPO" else image.format  # several JPEGs in one file
        remarks = {
            f"{image.format} file named {extension}": bool(extension)
            and Image.registered_extensions().get(extension) != kind,
            "CMYK colors": image.mode == "CMYK",
            "16-bit gray": is_16_bit_gray(image),
            "32-bit gray (whole numbers as levels, 0 to 1 as fractions of 255)": image.mode in ("I", "F")
            and not is_16_bit_gray(image),
            "EXIF rotation (ignored when reading)": orientation in range(2, 9),
        }
        return name, "", [remark for remark, applies in remarks.items() if applies]


def _compare_classes(name: str, classes: set[str], other: str, expected: set[str], problems: list[str]) -> None:
    missing, extra = sorted(expected - classes), sorted(classes - expected)
    if missing:
        problems.append(f"{name}: without {plural(len(missing), 'class', 'classes')} of {other}: {some_names(missing)}")
    if extra:
        problems.append(f"{name}: {plural(len(extra), 'class', 'classes')} not in {other}: {some_names(extra)}")


def format_report(report: TreeReport) -> str:
    """The report as a short table, remarks and problems."""
    lines = [f"{'split':<8}{'classes':>9}{'images':>12}{'fewest':>9}{'most':>9}{'corrupt':>9}"]
    for split, contents in report.splits.items():
        counts = contents.images_per_class.values()
        low, high, corrupt = min(counts), max(counts), len(contents.corrupt)
        lines.append(f"{split:<8}{len(counts):>9,}{contents.images:>12,}{low:>9,}{high:>9,}{corrupt:>9,}")
    for split, contents in report.splits.items():
        lines += [f"remark: {split}: {contents.not_counted}"] if contents.not_counted else []
        for kind, names in sorted(contents.remarks.items()):
            lines.append(f"remark: {split}: {len(names):,} x {kind}, for example {names[0]}")
    lines += [f"remark: {remark}" for remark in report.remarks]
    lines += [f"PROBLEM: {problem}" for problem in report.problems]
    lines.append(f"{plural(len(report.problems), 'problem')} found" if report.problems else "no problems found")
    return "\n".join(lines)
