"""Files with parents, and overrides of the command line, merged into one nested dict that knows its origins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddfnet.config.reader import KeyPath, parse_value, read_yaml
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.files import similar_file

COMMAND_LINE = "command line"


def read_with_bases(path: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Reads a file and the parents that its key `base` names (relative to the file), merged in order before it.

    Args:
        path: YAML file.
        chain: the files that led here.

    Returns:
        The nested dict, and the origin `file:line` of each key path.

    Raises:
        ConfigError: a file that cannot be read, or a `base` that leads back to itself.
    """
    resolved = path.resolve()
    if resolved in chain:
        names = " -> ".join(p.name for p in (*chain, resolved))
        raise ConfigError(f"{path}: `base` leads back to itself ({names}): remove one link")
    own, own_origins = read_yaml(path)
    bases = own.pop("base", [])
    own_origins.pop(("base",), None)
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: `base` must be a file name or a list of file names, got {bases!r}")
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for base in bases:
        if not (file := path.parent / base).exists():
            raise ConfigError(f"{path}: `base` {base}: there is no {file}{similar_file(file)}")
        base_values, base_origins = read_with_bases(path.parent / base, (*chain, resolved))
        _merge(values, base_values, origins, base_origins, ())
    _merge(values, own, origins, own_origins, ())
    return values, origins


def _merge(
    into: dict[str, Any], new: dict[str, Any], origins: dict[KeyPath, str], new_origins: dict[KeyPath, str], at: KeyPath
) -> None:
    """Merges nested dicts; lists and scalars replace, and the origins of what they replace go."""
    for key, value in new.items():
        path = (*at, key)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, origins, new_origins, path)
        else:
            into[key] = value
            for old in [p for p in origins if p[: len(path)] == path]:
                del origins[old]
            origins.update({p: o for p, o in new_origins.items() if p[: len(path)] == path})


def apply_override(override: str, values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
    """Merges one `a.b=value` of the command line; the value is read as YAML.

    Raises:
        ConfigError: it is not written like that.
    """
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        how = "an override is written key.sub=value, without spaces, e.g. optim.lr=0.1"
        raise ConfigError(f"cannot read {override!r}: {how}")
    if not text.strip():  # of a variable of the shell that is not set
        raise ConfigError(f"{override} has no value: give one, or {key}=null if none is meant")
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"{override!r}: {error}") from None
    nested: Any = value
    new_origins = {path: COMMAND_LINE}
    if isinstance(value, dict):
        new_origins.update({(*path, *inner): COMMAND_LINE for inner in _paths(value)})
    for part in reversed(path):
        nested = {part: nested}
    _merge(values, nested, origins, new_origins, ())


def _paths(value: dict[str, Any]) -> Iterator[KeyPath]:
    for key, inner in value.items():
        yield (str(key),)
        if isinstance(inner, dict):
            yield from ((str(key), *rest) for rest in _paths(inner))
