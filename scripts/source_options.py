"""The options of commands that say what a dataset is: keys of `ddfnet.data.sources.SourceConfig` in the words of a
command line. Imports nothing that takes long: --help need not wait for torch."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddfnet.data.sources import SourceConfig

KINDS = ("auto", "folder", "table", "huggingface", "tar", "store")
# key: what stands for its value, and what it is
OPTIONS = {
    "image_column": ("COLUMN", "column of the images in a list, parquet or Arrow files, or their extension in tars, if "
                               "it has a name that is not known (image, img, jpg, ...)"),
    "label_column": ("COLUMN", "the same of the labels"),
    "class_names": ("FILE", "text file of class names, one a line in label order, for data that has only numbers; or "
                            "imagenet-1k, for its synset ids (default: the names that the data has)"),
    "val_labels": ("FILE", "labels of a tar of unsorted validation images: ImageNet's devkit (.tar.gz), or a text file "
                           "(default: the devkit that lies beside the tar)"),
    "labels": ("FILE", "CSV or TSV of file names and class names, below the data or absolute, for images whose folders "
                       "do not say their classes. A file name is a path below the data, or below train and val, or the "
                       "name alone"),
    "label_separator": ("TEXT", "with --multi-label: what stands between the class names of one cell (default: the "
                                "first of | ; , that occurs)"),
}  # fmt: skip
FLAGS = {
    "multi_label": "images may have any number of classes: in --labels, in lists as train and val, or a store of these",
    "allow_missing_val_classes": "val may lack some of the classes of train",
}


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds them to a command."""
    kinds = "what the data is, where that is not found out (default: auto, by what is there)"
    parser.add_argument("--kind", dest="data_source", choices=KINDS, help=kinds)
    for key, (metavar, text) in OPTIONS.items():
        parser.add_argument(f"--{key.replace('_', '-')}", dest=f"data_{key}", metavar=metavar, help=text)
    for key, text in FLAGS.items():
        option = f"--{key.replace('_', '-')}"
        parser.add_argument(option, dest=f"data_{key}", action="store_true", default=None, help=text)


def source_config(arguments: argparse.Namespace) -> "SourceConfig":
    """The configuration that they give; ConfigError where they contradict."""
    from pydantic import ValidationError

    from ddfnet.data.sources import SourceConfig
    from ddfnet.utils.errors import ConfigError

    given: dict[str, Any] = {key: getattr(arguments, f"data_{key}") for key in ("source", *OPTIONS, *FLAGS)}
    try:
        return SourceConfig(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())) from None


def at_least_1(text: str) -> int:
    """The type of an option: a whole number, not below 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)
