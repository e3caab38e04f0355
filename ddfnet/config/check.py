"""A nested dict against a section: pydantic checks, and its faults become sentences that name key, value and fix."""

import difflib
import re
from typing import Any, TypeVar

from pydantic import ValidationError

from ddfnet.config.reader import KeyPath, flow
from ddfnet.config.sections import Faults, Section, key_paths, names_elsewhere, section_type
from ddfnet.utils.errors import ConfigError, did_you_mean

S = TypeVar("S", bound=Section)


def check(schema: type[S], values: dict[str, Any], origins: dict[KeyPath, str] | None = None) -> S:
    """The section of a nested dict.

    Args:
        schema: what the dict should be.
        values: as read from YAML.
        origins: where each value stands, for the messages.

    Raises:
        ConfigError: all faults in one message; those between values of a section once each is right by itself.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        faults = faults_of(error, schema, origins or {})
        head = "the configuration has a fault" if len(faults) == 1 else f"the configuration has {len(faults)} faults"
        raise ConfigError("\n  ".join([f"{head}:", *faults])) from None


def faults_of(error: ValidationError, schema: type[Section], origins: dict[KeyPath, str]) -> list[str]:
    """Pydantic's faults as sentences: key, value, origin, what is wrong, and the fix."""
    by_key: dict[str, str] = {}
    for fault in error.errors():
        path = _key_path(fault, schema)
        key = ".".join(path)
        where = next((f" ({origins[path[:n]]})" for n in range(len(path), 0, -1) if path[:n] in origins), "")
        wrong = fault["type"]
        if wrong == "extra_forbidden":
            new_name = _renamed(path, schema)
            by_key[key] = (
                f"{key}{where} is called {new_name} now: rename it"
                if new_name
                else f"unknown key {key}{where}{_suggest(key, schema)}"
            )
        elif wrong == "missing" and not isinstance(fault["loc"][-1], int):
            by_key[key] = f"{key} is required: add it to the file or give {key}=VALUE on the command line"
        elif wrong == "value_error":
            problem = fault["ctx"]["error"]
            messages = [one.text(origins) for one in problem.faults] if isinstance(problem, Faults) else [str(problem)]
            by_key.update(zip(messages, messages, strict=True))
        elif key in by_key:  # each member of a union has its own complaint
            if not by_key[key].endswith(_expectation(fault)):
                by_key[key] += f", or {_expectation(fault)}"
        else:
            expected = _expectation(fault) + _example(fault, key, path, schema)
            by_key[key] = f"{key}={flow(fault['input'])}{where} must be {expected}"
    return list(by_key.values())


def _key_path(fault: Any, schema: type[Section]) -> KeyPath:
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
    "list_type": "a list",
    "tuple_type": "a list of numbers",
    "too_long": "a list of {max_length} values",
    "missing": "a longer list",  # by an index
    "too_short": "a list of {min_length} values",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}


# What other trainers call values, where the name nearest to it would be another one.
_VALUES_ELSEWHERE = {"gpu": "cuda", "ce": "cross_entropy", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def _expectation(fault: Any) -> str:
    if fault["type"] == "literal_error":
        expected = fault["ctx"]["expected"]
        values = re.findall(r"'([^']*)'", expected)
        given = _VALUES_ELSEWHERE.get(str(fault["input"]), str(fault["input"]))
        near = f"did you mean {given}?" if given in values else did_you_mean(given, values, most=1)
        return f"{expected}{near and f'; {near}'}"
    if fault["type"] in _EXPECTATIONS:
        return _EXPECTATIONS[fault["type"]].format(**fault.get("ctx", {}))
    return fault["msg"].removeprefix("Input should be ")


def _example(fault: Any, key: str, path: KeyPath, schema: type[Section]) -> str:
    """How a value in place of a section or of a list was likely meant."""
    given = fault["input"]
    if fault["type"] == "list_type" and isinstance(given, str | int | float):
        return f": {key}=[{flow(given)}]"
    section = next((section_type(field.annotation) for own, field in key_paths(schema) if own == path), None)
    if section is None or not fault["type"].startswith("model_"):
        return ""
    required = [name for name, field in section.model_fields.items() if field.is_required()]
    first = next(iter([*required, *section.model_fields]))
    return f", e.g. {key}.{first}=VALUE"


def _suggest(key: str, schema: type[Section]) -> str:
    names = {".".join(path): path[-1] for path, _ in key_paths(schema)}
    section, _, last = key.lower().replace("-", "_").rpartition(".")
    close = [name for name, leaf in names.items() if leaf == last]  # right name, wrong section
    close = close or [name for other, name in names_elsewhere(schema) if other == last]
    own = {leaf: name for name, leaf in names.items() if name.rpartition(".")[0] == section}
    close = close or [own[leaf] for leaf in difflib.get_close_matches(last, own, n=1, cutoff=0.7)]
    close = close or difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    if not close:  # nearly right name, wrong section
        leaf = difflib.get_close_matches(last, set(names.values()), n=1, cutoff=0.8)
        close = [name for name in names if [names[name]] == leaf]
    return f"; did you mean {' or '.join(close)}?" if close else "; docs/reference/config.md lists all keys"


def _renamed(path: KeyPath, schema: type[Section]) -> str | None:
    """The present name of a key of an earlier version, None if it never was one."""
    for name in path[:-1]:
        inner = section_type(schema.model_fields[name].annotation) if name in schema.model_fields else None
        if inner is None or not issubclass(inner, Section):
            return None
        schema = inner
    new_name = schema.renamed.get(path[-1])
    return new_name and ".".join((*path[:-1], new_name))
