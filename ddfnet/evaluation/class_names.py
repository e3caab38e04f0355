"""Names of classes: ImageNet's, their order, and readable ones."""

from collections import Counter
from collections.abc import Sequence
from importlib import resources

from timm.data import ImageNetInfo

from ddfnet.utils.text import printable


def imagenet_classes(subset: str = "") -> list[str]:
    """WordNet ids of ImageNet-1k in label order, which is that of sorting; `a` and `r`: of ImageNet-A and -R."""
    name = f"imagenet_{subset}_synsets.txt" if subset else "imagenet_synsets.txt"
    return (resources.files("timm.data") / "_info" / name).read_text().split()


def known_classes(classes: list[str] | None, outputs: int) -> list[str] | None:
    """Class names of a checkpoint; ImageNet-1k's where it names none and has 1000 outputs; None where nobody knows."""
    imagenet = imagenet_classes()
    return imagenet if classes is None and outputs == len(imagenet) else classes


def output_names(classes: Sequence[str], outputs: int) -> list[str]:
    """A name for each output of a network: `output 5` and the like behind those of the classes."""
    return [*classes, *(f"output {i}" for i in range(len(classes), outputs))]


def in_order_of_number(classes: Sequence[str]) -> list[str]:
    """Sorted by name, as published label files count them; decimal numbers by their value, 2 before 10."""
    if all(name.isascii() and name.isdecimal() for name in classes):
        return sorted(classes, key=lambda name: (int(name), name))
    return sorted(classes)


def readable_names(classes: Sequence[str]) -> list[str]:
    """`n01440764` becomes `tench`; names that are no WordNet ids known to timm stay as they are.

    Bytes of a folder's name that are no UTF-8 become `\\udce9` and the like, which can be printed and drawn. Different
    classes keep different names: ImageNet's two cranes become `crane (n02012849)` and `crane (n03126707)`.
    """
    classes, info = [printable(name) for name in classes], ImageNetInfo()
    names = [_first_word(info, name) for name in classes]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({own})" for own, name in zip(classes, names, strict=True)]


def _first_word(info: ImageNetInfo, name: str) -> str:
    try:
        return info.label_name_to_description(name).split(",")[0]
    except KeyError:
        return name
