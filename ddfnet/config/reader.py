"""YAML with what a configuration needs: where each value stands, plain numbers, no duplicate keys, no tags."""

import re
from pathlib import Path
from typing import Any

import yaml

from ddfnet.utils.errors import ConfigError
from ddfnet.utils.files import similar_file

KeyPath = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's reading of scalars: `1e-3` is a number, and only `true` and `false` are booleans."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), "-+0123456789")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*)?\.?[0-9]+(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+\.$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"
    ),
    "-+.0123456789",
)
# The default reads `010` as octal and `1:30` as base 60.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))


def parse_value(text: str) -> Any:
    """The value of one command line override, read as YAML: `0.1`, `true`, `[0.08, 1]`, `{p: 0.4}`, `text`.

    Raises:
        ConfigError: the text is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value {text!r}: {_reason(error)}") from None


def flow(value: Any) -> str:
    """One value as YAML reads it back, on one line."""
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return f"{value!r}"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True).strip()
    return text.removesuffix("...").strip()


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Reads one YAML file.

    Returns:
        The nested dict, and for each key path (`("optim", "lr")`) its origin `file:line`.

    Raises:
        ConfigError: missing or unreadable file, syntax error, duplicate key, or a top level that is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file not found: {path}{similar_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config file {path}: {error}") from None
    loader = _Loader(text)
    origins: dict[KeyPath, str] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: expected `key: value` lines at the top level")
        _note_origins(node, (), path, origins)
        return loader.construct_document(node), origins
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    finally:
        loader.dispose()


def _note_origins(node: yaml.MappingNode, prefix: KeyPath, path: Path, origins: dict[KeyPath, str]) -> None:
    for key_node, value_node in node.value:
        key = (*prefix, str(key_node.value))
        line = key_node.start_mark.line + 1
        if key in origins:
            raise ConfigError(f"{path}:{line}: {'.'.join(key)} is given twice (first at {origins[key]}): keep one")
        origins[key] = f"{path}:{line}"
        if isinstance(value_node, yaml.MappingNode):
            _note_origins(value_node, key, path, origins)


def _reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
