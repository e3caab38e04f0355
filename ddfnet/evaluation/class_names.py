"""Names of classes a person can read."""

from collections import Counter
from collections.abc import Sequence
from importlib import resources

from timm.data import ImageNetInfo


def imagenet_classes(subset: str = "") -> list[str]:
    """WordNet ids of ImageNet-1k in label order, which is that of sorting; `a` and `r`: of ImageNet-A and -R."""
    name = f"imagenet_{subset}_synsets.txt" if subset else "imagenet_synsets.txt"
    return resources.files("timm.data").joinpath("_info", name).read_text().split()


def readable_names(classes: Sequence[str]) -> list[str]:
    """`n01440764` becomes `tench`; names that are no WordNet ids known to timm stay as they are.

    Different classes keep different names: ImageNet's two cranes become `crane (n02012849)` and `crane (n03126707)`.
    """
    if not any(_is_wordnet_id(name) for name in classes):
        return list(classes)
    info = ImageNetInfo()
    names = [_first_word(info, name) if _is_wordnet_id(name) else name for name in classes]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({own})" for own, name in zip(classes, names, strict=True)]


def _is_wordnet_id(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()


def _first_word(info: ImageNetInfo, name: str) -> str:
    try:
        return info.label_name_to_description(name).split(",")[0]
    except KeyError:
        return name
