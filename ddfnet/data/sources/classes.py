"""Classes of a source: their names, their order, and whether they are those that are expected."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from ddfnet.data.sources.base import SourceConfig
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

IMAGENET_1K = "imagenet-1k"  # as `class_names`

_MOST_NAMES = 5  # how many names an error message lists


class MissingClassesError(DataError):
    """Some of the expected classes have no images; nothing else is wrong with the classes."""


def settle_classes(
    root: str,
    labels: np.ndarray,
    own: list[str] | None,
    *,
    classes: list[str] | None,
    config: SourceConfig,
    where: Callable[[int], str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Labels and class names of a source whose labels are numbers.

    Args:
        labels: int (N,), as the data numbers its classes.
        own: names of these numbers, where the data has some.
        classes: expected names in label order (see `open_source`).
        where: position in `labels` -> where that label stands, for messages.

    Returns:
        labels int32 (N,) and the class names they count in.

    DataError where a label has no name, or the classes are not the expected ones.
    """
    names = names_of_file(config.class_names) or own
    if names is not None and len(names) == 1000:
        names = _synsets(names)
    if names is not None and len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{root}: class names occur twice: {some_names(twice)}; give others as data.class_names")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    limit = len(names) if names is not None else len(classes) if classes is not None else high + 1
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        # Test sets hide their labels as -1.
        fix = "choose a split with labels" if low < 0 else "correct it, or give all names as data.class_names"
        first = where(int(np.argmax(labels == wrong))) if where is not None else root
        raise DataError(f"{first}: label {wrong} is out of range, there are {limit} classes (0 to {limit - 1}); {fix}")
    if classes is None or names is None:
        return labels.astype(np.int32), list(classes or names or map(str, range(limit)))
    compare_classes(root, set(names), set(classes), missing_is_wrong=not config.allow_missing_val_classes)
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[name] for name in names], np.int32)[labels], list(classes)


def settle_names(
    root: str,
    labels: Sequence[str],
    *,
    classes: list[str] | None,
    config: SourceConfig,
    where: Callable[[int], str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """`settle_classes` for labels given as text: whole numbers throughout are numbers, all else are class names."""
    known, codes = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
    texts = known.tolist()
    if all(text.removeprefix("-").isdecimal() for text in texts) and not set(texts) <= set(classes or ()):
        numbers = np.array([int(text) for text in texts], np.int64)
        return settle_classes(root, numbers[codes], None, classes=classes, config=config, where=where)
    names = names_of_file(config.class_names)

    def first_of(name: str) -> str:
        return where(int(np.argmax(codes == texts.index(name)))) if where is not None and name in texts else root

    if names is not None:
        compare_classes(root, set(texts), set(names), whose="data.class_names", missing_is_wrong=False, where=first_of)
    expected = classes if classes is not None else names
    if expected is None:
        return codes.astype(np.int32), texts
    present, allowed = set(texts if names is None else names), config.allow_missing_val_classes
    compare_classes(root, present, set(expected), missing_is_wrong=not allowed, where=first_of)
    position = {name: i for i, name in enumerate(expected)}
    return np.array([position[text] for text in texts], np.int32)[codes], list(expected)


def refuse_empty_classes(root: str, labels: np.ndarray, classes: list[str], allow_empty: bool) -> None:
    """DataError where there is no image at all, or a class without any, unless that is allowed."""
    if not len(labels):
        raise DataError(f"{root} holds no images; give the data of another place")
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty and not allow_empty:
        raise MissingClassesError(
            f"no images of {len(empty)} of {plural(len(classes), 'class', 'classes')} in {root}: {some_names(empty)}; "
            "fill them, or leave them out of the class names"
        )


def compare_classes(
    root: str,
    present: set[str],
    expected: set[str],
    *,
    whose: str = "the training set or checkpoint",
    missing_is_wrong: bool = True,
    where: Callable[[str], str] | None = None,
) -> None:
    """DataError where the classes of a source are not the expected ones (MissingClassesError: they are but for missing
    ones); `where` tells where one first occurs."""
    missing, extra = sorted(expected - present), sorted(present - expected)
    parts = [f"{len(missing)} missing ({some_names(missing)})"] * bool(missing and missing_is_wrong)
    first = f", the first in {where(extra[0])}" if extra and where is not None else ""
    parts += [f"{len(extra)} not expected ({some_names(extra)}{first})"] * bool(extra)
    if parts:
        raise (DataError if extra else MissingClassesError)(
            f"the classes of {root} differ from the {plural(len(expected), 'class', 'classes')} of {whose}: "
            f"{' and '.join(parts)}; use the "
            "data that belongs to them, with the same class names, or name them with data.class_names"
        )


def some_names(names: list[str]) -> str:
    """The first five names, comma-separated, with dots if there are more."""
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")


def names_of_file(path: str | None) -> list[str] | None:
    """The class names of `data.class_names`, in label order."""
    if path is None:
        return None
    if path == IMAGENET_1K:
        return ImageNetInfo(IMAGENET_1K).label_names()
    try:
        names = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise DataError(f"data.class_names={path} cannot be read: {reason}") from None
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise DataError(f"data.class_names={path} must have one name a line in label order, without empty lines")
    return names


def _synsets(names: list[str]) -> list[str]:
    """ImageNet-1k's synset ids for its classes in words ("tench, Tinca tinca", ...), as its Hugging Face edition has
    them; other names as they are."""
    info = ImageNetInfo(IMAGENET_1K)
    words = [info.index_to_description(i) for i in range(1000)]
    agree = sum(a.split(",")[0].lower() == b.split(",")[0].lower() for a, b in zip(names, words, strict=True))
    return info.label_names() if agree >= 950 else names
