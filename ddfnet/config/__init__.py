"""Configuration: schema, YAML files with inheritance, command line overrides, errors that name the fix."""

from ddfnet.config.derived import Derived, derive
from ddfnet.config.ineffective import ineffective_keys
from ddfnet.config.loading import LoadedConfig, dump_config, key_paths, load_config, section_type, validate
from ddfnet.config.schema import Config

__all__ = [
    "Config",
    "Derived",
    "LoadedConfig",
    "derive",
    "dump_config",
    "ineffective_keys",
    "key_paths",
    "load_config",
    "section_type",
    "validate",
]
