"""From a YAML file, its bases and overrides to a checked `Config` that knows where each value came from."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ddfnet.config.classification import ClassificationConfig
from ddfnet.config.depth import DepthConfig
from ddfnet.config.detection import DetectionConfig
from ddfnet.config.schema import Config
from ddfnet.config.yaml_reader import KeyPath, parse_value, read_yaml
from ddfnet.errors import ConfigError

SCHEMAS: dict[str, type[Config]] = {
    "classification": ClassificationConfig,
    "detection": DetectionConfig,
    "depth": DepthConfig,
}
COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration and the origin (`file:line`, `command line`) of each value that is not a default."""

    config: Config
    origins: dict[KeyPath, str]

    def to_yaml(self, *, with_origins: bool = True) -> str:
        """The resolved configuration as YAML that `--config` reads back, each line with its origin as a comment."""
        return dump_config(self.config.model_dump(mode="json"), self.origins if with_origins else None)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Loads and checks a configuration.

    Args:
        path: YAML file. Its key `base` names one or several parents (relative to the file), merged in order before it.
        overrides: `a.b=value` strings, merged last; the value is read as YAML.

    Raises:
        ConfigError: anything that is not exactly right, all faults of one run in one message.
    """
    path = Path(path)
    values, origins = _read_with_bases(path, ())
    for override in overrides:
        _apply_override(override, values, origins)
    run = values.setdefault("run", {})
    if isinstance(run, dict) and run.get("dir") is None:
        run["dir"] = str(Path("runs") / path.stem)
        origins[("run", "dir")] = f"{DEFAULT}, from the name of {path.name}"
    return LoadedConfig(validate(values, origins), origins)


def validate(values: dict[str, Any], origins: dict[KeyPath, str] | None = None) -> Config:
    """Checks a nested dict against the schema of its task; origins tell a message where each faulty value stands."""
    origins = origins or {}
    task = values.get("task", "classification")
    if not isinstance(task, str) or task not in SCHEMAS:
        where = f" ({origins['task',]})" if ("task",) in origins else ""
        raise ConfigError(f"task={_flow(task)}{where} must be {' or '.join(SCHEMAS)}")
    schema = SCHEMAS[task]
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        faults = _explain(error.errors(), origins, schema)
        head = "the configuration has a fault" if len(faults) == 1 else f"the configuration has {len(faults)} faults"
        raise ConfigError("\n  ".join([f"{head}:", *faults])) from None


def key_paths(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """All valid key paths with their pydantic field, sections before their members."""
    for name, field in model.model_fields.items():
        yield (*prefix, name), field
        section = section_type(field.annotation)
        if section is not None:
            yield from key_paths(section, (*prefix, name))


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The section class behind an annotation (`EmaConfig | None` -> `EmaConfig`), None for plain values."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def dump_config(values: dict[str, Any], origins: dict[KeyPath, str] | None) -> str:
    """YAML of a nested dict, in its own order; with origins, each value carries its origin as a comment."""
    lines: list[str] = []

    def walk(section: dict[str, Any], prefix: KeyPath) -> None:
        for key, value in section.items():
            path = (*prefix, key)
            indent = "  " * len(prefix)
            # An empty dict is a value; a dict below a free-form key (model.kwargs) is written as one, too.
            if isinstance(value, dict) and value and not _is_free_form(path):
                lines.append(f"{indent}{key}:")
                walk(value, path)
                continue
            text = _flow(value)
            comment = f"  # {_origin(path, origins)}" if origins is not None else ""
            lines.append(f"{indent}{key}: {text}{comment}")

    walk(values, ())
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return f"{value!r}"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True).strip()
    return text.removesuffix("...").strip()


def _origin(path: KeyPath, origins: dict[KeyPath, str]) -> str:
    # A value inside a flow mapping or an override of a whole section has the origin of the nearest key above it.
    for length in range(len(path), 0, -1):
        if path[:length] in origins and (length == len(path) or _is_free_form(path[:length])):
            return origins[path[:length]]
    return DEFAULT


def _is_free_form(path: KeyPath) -> bool:
    return path[-1] in ("kwargs", "backbone_kwargs")


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
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
        base_values, base_origins = _read_with_bases(path.parent / base, (*chain, resolved))
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


def _apply_override(override: str, values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"cannot read {override!r}: an override is written key.sub=value, e.g. optim.lr=0.1")
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


def _explain(faults: list[Any], origins: dict[KeyPath, str], schema: type[Config]) -> list[str]:
    """Pydantic's faults as sentences: key, value, origin, what is wrong, and the fix."""
    by_key: dict[str, str] = {}
    for fault in faults:
        path = _key_path(fault, schema)
        key = ".".join(path)
        where = next((f" ({origins[path[:n]]})" for n in range(len(path), 0, -1) if path[:n] in origins), "")
        wrong = fault["type"]
        if wrong == "extra_forbidden":
            by_key[key] = f"unknown key {key}{where}{_suggest(key, schema)}"
        elif wrong == "missing":
            by_key[key] = f"{key} is required: add it to the file or give {key}=VALUE on the command line"
        elif wrong == "value_error":
            message = str(fault["ctx"]["error"])
            by_key[message] = message
        elif key in by_key:  # each member of a union has its own complaint
            if not by_key[key].endswith(_expectation(fault)):
                by_key[key] += f", or {_expectation(fault)}"
        else:
            by_key[key] = f"{key}={_flow(fault['input'])}{where} must be {_expectation(fault)}"
    return list(by_key.values())


def _key_path(fault: Any, schema: type[Config]) -> KeyPath:
    # Pydantic adds the member of a union, or the index in a list, to the location: keep what is a key.
    valid = {path for path, _ in key_paths(schema)}
    path: KeyPath = ()
    for part in map(str, fault["loc"]):
        if path in valid and (*path, part) not in valid and fault["type"] != "extra_forbidden":
            break
        path = (*path, part)
    unknown = fault["input"]
    while fault["type"] == "extra_forbidden" and isinstance(unknown, dict) and unknown:
        name = next(iter(unknown))  # an unknown section: name the key in it that the user wrote
        path, unknown = (*path, str(name)), unknown[name]
    return path


_EXPECTATIONS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a section of `key: value` pairs",
    "model_type": "a section of `key: value` pairs",
    "model_attributes_type": "a section of `key: value` pairs",
    "tuple_type": "a list of numbers",
    "too_long": "a list of {max_length} values",
    "too_short": "a list of {min_length} values",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}


def _expectation(fault: Any) -> str:
    if fault["type"] in _EXPECTATIONS:
        return _EXPECTATIONS[fault["type"]].format(**fault.get("ctx", {}))
    return fault["msg"].removeprefix("Input should be ")


def _suggest(key: str, schema: type[Config]) -> str:
    names = {".".join(path): path[-1] for path, _ in key_paths(schema)}
    close = [name for name, leaf in names.items() if leaf == key.rsplit(".", 1)[-1]]  # right name, wrong section
    close = close or difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    if not close:  # nearly right name, wrong section
        leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], set(names.values()), n=1, cutoff=0.8)
        close = [name for name in names if [names[name]] == leaf]
    return f"; did you mean {' or '.join(close)}?" if close else "; --print-config lists all keys"
