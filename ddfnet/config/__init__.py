"""Configuration: schema, YAML files with inheritance, command line overrides, errors that name the fix."""

from ddfnet.config.classification import ClassificationConfig
from ddfnet.config.depth import DepthConfig
from ddfnet.config.derived import Derived, derive
from ddfnet.config.detection import DetectionConfig
from ddfnet.config.ineffective import ineffective_keys
from ddfnet.config.loading import (
    SCHEMAS,
    LoadedConfig,
    dump_config,
    key_paths,
    load_config,
    section_type,
    validate,
)
from ddfnet.config.schema import Config

__all__ = [
    "SCHEMAS",
    "ClassificationConfig",
    "Config",
    "DepthConfig",
    "Derived",
    "DetectionConfig",
    "LoadedConfig",
    "derive",
    "dump_config",
    "ineffective_keys",
    "key_paths",
    "load_config",
    "section_type",
    "validate",
]
