"""The model zoo: known weights, downloads that are verified, conversion of official checkpoints.

On the command line: `python -m ddfnet.zoo --help`.
"""

from ddfnet.zoo.convert import Conversion, check_weights, convert
from ddfnet.zoo.download import cache_folder, check, fetch, file_path
from ddfnet.zoo.entries import Entry, File, ZooError, entries, find

__all__ = [
    "Conversion",
    "Entry",
    "File",
    "ZooError",
    "cache_folder",
    "check",
    "check_weights",
    "convert",
    "entries",
    "fetch",
    "file_path",
    "find",
]
