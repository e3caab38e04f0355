"""The model zoo: known weights, those that ship with the package, downloads that are verified.

The models load their weights through it, so what needs models stands above: `ddfnet.models.classifier` (a classifier
from any file or entry) and `ddfnet.inference.convert` (official checkpoints to safetensors).
"""

from ddfnet.zoo.download import cache_folder, check, fetch, file_path
from ddfnet.zoo.entries import Entry, File, ZooError, entries, find

__all__ = ["Entry", "File", "ZooError", "cache_folder", "check", "entries", "fetch", "file_path", "find"]
