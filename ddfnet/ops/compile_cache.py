"""torch.compile's cache on disk must not outlive the operators it was compiled from.

Its keys hold an operator's name and not its code: after an upgrade of this package a compiled model would continue with
the operators of before, silently.
"""

import hashlib
from pathlib import Path

import torch

from ddfnet import kernels


def tag_compile_cache() -> None:
    """Appends a hash of the operators' sources to `torch.compiler.config.cache_key_tag`, behind the user's own tag.

    Who sets the tag after the import of this package calls this again.
    """
    tag = f"ddfnet-{source_hash()}"
    given = torch.compiler.config.cache_key_tag
    if tag not in given:
        torch.compiler.config.cache_key_tag = f"{given}{tag}"


def source_hash() -> str:
    """Of all that a compiled graph may hold of this package: operators and kernels."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, *map(Path, kernels.__path__)):
        sources = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
        for name in sorted(sources):
            digest.update(name.encode() + b"\0" + sources[name].read_bytes())
    return digest.hexdigest()[:16]
