"""Verification of a class-folder tree before a long training is spent on it."""

import multiprocessing
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from timm.data import ImageNetInfo

from ddfnet.data.dataset import decode_error, is_16_bit_gray
from ddfnet.data.sources.folder import class_folders, list_images, some_names
from ddfnet.utils.errors import DataError

IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}

_FORMAT_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe"},
    "MPO": {".jpg", ".jpeg", ".jpe"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "TIFF": {".tif", ".tiff"},
    "GIF": {".gif"},
}
_EXIF_ORIENTATION = 0x0112
_MOST_BROKEN = 100  # broken files listed one by one; the rest is counted


@dataclass
class SplitReport:
    """What was found in one folder of classes.

    Attributes:
        folder: the folder.
        images_per_class: number of image files of each class folder.
        broken: (path, reason) of files that do not decode.
        remarks: unusual but usable files: kind -> (count, first example).
    """

    folder: str
    images_per_class: dict[str, int] = field(default_factory=dict)
    broken: list[tuple[str, str]] = field(default_factory=list)
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of image files."""
        return sum(self.images_per_class.values())


@dataclass
class TreeReport:
    """Result of `check_tree`: one report per split ("train", "val", or "images" for a single folder), and problems."""

    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check_tree(
    root: str | os.PathLike,
    *,
    workers: int = 1,
    imagenet: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TreeReport:
    """Verify `root/train` and `root/val`, or `root` itself if it has neither.

    Looked for: class folders, empty ones, classes that differ between train and val, files that do not decode. CMYK,
    16-bit, EXIF-rotated and wrongly named files are remarked upon only: they are usable, and ImageNet has some.

    Args:
        root: the tree.
        workers: decoding processes; 1 or less decodes in this one.
        imagenet: also compare with ImageNet-1k's 1000 synsets and its known numbers of images.
        progress: called now and then with (files done, files in all).

    Raises:
        DataError: `root` is not a folder that could hold classes.
    """
    root = Path(root)
    report = TreeReport()
    found = [split for split in ("train", "val") if (root / split).is_dir()]
    folders = {split: root / split for split in found} or {"images": root}
    if len(found) == 1:
        report.problems.append(f"{root} has a folder {found[0]} but not the other one of train and val")
    for split, folder in folders.items():
        try:
            classes = class_folders(folder)
        except DataError as error:
            if not found:
                raise
            report.problems.append(str(error))
            continue
        report.splits[split] = _check_split(split, folder, classes, workers, progress, report.problems)
    if len(report.splits) == 2:
        train, val = (set(report.splits[split].images_per_class) for split in ("train", "val"))
        _compare_classes("val", val, "train", train, report.problems)
    if imagenet:
        _compare_with_imagenet(report)
    return report


def _check_split(
    split: str,
    folder: Path,
    classes: list[str],
    workers: int,
    progress: Callable[[int, int], None] | None,
    problems: list[str],
) -> SplitReport:
    report = SplitReport(str(folder))
    paths = []
    for name in classes:
        images = list_images(folder / name)
        report.images_per_class[name] = len(images)
        paths += [str(folder / name / image) for image in images]
    empty = [name for name, count in report.images_per_class.items() if not count]
    if empty:
        problems.append(f"{split}: {len(empty)} class folders hold no images: {some_names(empty)}")

    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for done, (path, error, remarks) in enumerate(_inspect_all(paths, workers), 1):
        if error:
            report.broken.append((path, error))
        for kind in remarks:
            kinds[kind] += 1
            examples.setdefault(kind, path)
        if progress is not None and (done % 1000 == 0 or done == len(paths)):
            progress(done, len(paths))
    report.remarks = {kind: (count, examples[kind]) for kind, count in sorted(kinds.items())}
    problems += [f"{split}: {path} is broken ({error})" for path, error in report.broken[:_MOST_BROKEN]]
    if len(report.broken) > _MOST_BROKEN:
        problems.append(f"{split}: {len(report.broken) - _MOST_BROKEN} more files are broken")
    return report


def _inspect_all(paths: list[str], workers: int) -> Iterator[tuple[str, str, list[str]]]:
    if workers <= 1:
        yield from map(inspect_file, paths)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(workers) as pool:
        yield from pool.imap(inspect_file, paths, chunksize=32)


def inspect_file(path: str) -> tuple[str, str, list[str]]:
    """Decode one file: (path, why it is broken or an empty string, what is unusual about it)."""
    remarks = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with open(path, "rb") as file:
                image = Image.open(file)
                image.load()
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:
        return path, decode_error(error), remarks
    extension = os.path.splitext(path)[1].lower()
    if extension not in _FORMAT_EXTENSIONS.get(image.format, {extension}):
        remarks.append(f"{image.format} file named {extension}")
    if image.mode == "CMYK":
        remarks.append("CMYK colors")
    if is_16_bit_gray(image):
        remarks.append("16-bit gray")
    if orientation in range(2, 9):
        remarks.append("EXIF rotation (ignored when reading)")
    return path, "", remarks


def _compare_classes(name: str, classes: set[str], other: str, expected: set[str], problems: list[str]) -> None:
    missing, extra = sorted(expected - classes), sorted(classes - expected)
    if missing:
        problems.append(f"{name}: {len(missing)} classes of {other} are missing: {some_names(missing)}")
    if extra:
        problems.append(f"{name}: {len(extra)} classes are not in {other}: {some_names(extra)}")


def _compare_with_imagenet(report: TreeReport) -> None:
    synsets = set(ImageNetInfo("imagenet-1k").label_names())
    for split, found in report.splits.items():
        _compare_classes(split, set(found.images_per_class), "ImageNet-1k", synsets, report.problems)
        expected = [IMAGENET_COUNTS[split]] if split in IMAGENET_COUNTS else sorted(IMAGENET_COUNTS.values())
        if found.images not in expected:
            known = " or ".join(f"{count:,}" for count in expected)
            report.problems.append(f"{split}: {found.images:,} images, ImageNet-1k has {known}")


def format_report(report: TreeReport) -> str:
    """The report as a short table, remarks and problems."""
    lines = [f"{'split':<8}{'classes':>9}{'images':>12}{'fewest':>9}{'most':>9}{'broken':>9}"]
    for split, found in report.splits.items():
        counts = found.images_per_class.values()
        lines.append(
            f"{split:<8}{len(counts):>9,}{found.images:>12,}{min(counts):>9,}{max(counts):>9,}{len(found.broken):>9,}"
        )
    for split, found in report.splits.items():
        for kind, (count, example) in found.remarks.items():
            lines.append(f"remark: {split}: {count:,} x {kind}, for example {example}")
    lines += [f"PROBLEM: {problem}" for problem in report.problems]
    lines.append(f"{len(report.problems)} problem(s) found" if report.problems else "no problems found")
    return "\n".join(lines)
