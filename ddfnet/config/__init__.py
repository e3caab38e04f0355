"""How YAML becomes a checked object: sections, files with parents, overrides, origins. Knows no key and no task."""

from ddfnet.config.check import check
from ddfnet.config.loaded import LoadedConfig
from ddfnet.config.sections import (
    Contradiction,
    Fault,
    Fraction,
    NonNegative,
    Pair,
    Positive,
    Section,
    Triple,
    key_paths,
    refuse,
    section_type,
)

__all__ = [
    "Contradiction",
    "Fault",
    "Fraction",
    "LoadedConfig",
    "NonNegative",
    "Pair",
    "Positive",
    "Section",
    "Triple",
    "check",
    "key_paths",
    "refuse",
    "section_type",
]
