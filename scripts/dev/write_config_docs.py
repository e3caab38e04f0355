#!/usr/bin/env python
"""Writes the tables of docs/reference/config.md (keys, types, defaults, meanings) and config.schema.json beside it."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ddfnet.config import key_paths, section_type
from ddfnet.tasks import DEFAULT_TASK, Config, task_class, task_names
from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter
from ddfnet.utils.files import write_text

SCHEMAS = {name: task_class(name).config_class for name in task_names()}

PAGE, SCHEMA = (ROOT / "docs" / "reference" / name for name in ("config.md", "config.schema.json"))


def type_name(schema: dict[str, Any]) -> str:
    """A JSON schema of one value in words: `integer, at least 0`."""
    if "anyOf" in schema:
        return " or ".join(type_name(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " / ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema["type"] == "array":
        lengths = {"minItems", "maxItems"} & set(schema)
        count = f"{schema['minItems']} " if len(lengths) == 2 else "at least one of " if lengths else ""
        return f"list of {count}{'names' if schema.get('items', {}).get('type') == 'string' else 'numbers'}"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {schema[limit]:g}" for limit, word in limits.items() if limit in schema]
    return ", ".join([schema["type"], *bounds])


def page() -> str:
    """docs/reference/config.md: what all tasks share, then what each has of its own."""
    sections = [name for name in Config.model_fields if name not in ("task", "model", "data")]
    shared = [path for path, _ in key_paths(Config) if path[0] in sections]
    text = _tables(Config, shared, "Every task")
    for task, schema in SCHEMAS.items():
        own = [path for path, _ in key_paths(schema) if path not in shared and path != ("task",)]
        text += _tables(schema, own, f"`task: {task}`{', the default' if task == DEFAULT_TASK else ''}")
    return markdown.fill(PAGE.read_text(), {"keys": text})


def _tables(schema: type[BaseModel], paths: list[tuple[str, ...]], heading: str) -> str:
    definitions = schema.model_json_schema()["$defs"]
    sections: dict[str, list[tuple[str, ...]]] = {}
    owner = {"": schema}
    for path, field in key_paths(schema):
        name, parent = ".".join(path), ".".join(path[:-1])
        if section_type(field.annotation) is not None:
            owner[name] = section_type(field.annotation)
            continue
        if path not in paths:
            continue
        kind = type_name(definitions[owner[parent].__name__]["properties"][path[-1]])
        default = "required" if field.is_required() else f"`{_flow(field.get_default(call_default_factory=True))}`"
        meaning = " ".join((field.description or "").split())
        sections.setdefault(parent, []).append((f"`{name}`", kind, default, meaning))
    head = ("key", "type", "default", "meaning")
    return f"\n## {heading}\n" + "".join(f"\n### {s}\n\n{markdown.table(head, rows)}" for s, rows in sections.items())


def _flow(value: Any) -> str:
    return json.dumps(round(value, 4) if isinstance(value, float) else value).strip('"')


def json_schema() -> str:
    """JSON schema for editors; `base` is a key of the files, not of the resolved configuration."""
    references, schema = models_json_schema([(model, "validation") for model in SCHEMAS.values()])
    for model in SCHEMAS.values():
        schema["$defs"][model.__name__]["properties"]["base"] = {
            "description": "One or several parent files, relative to this one.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        }
    for part in schema["$defs"].values():
        part.pop("required", None)  # a file need not be complete: parents and overrides add to it
    branches: Any = references[SCHEMAS[DEFAULT_TASK], "validation"]  # of a file that names no task
    for task in [task for task in SCHEMAS if task != DEFAULT_TASK]:
        condition = {"properties": {"task": {"const": task}}, "required": ["task"]}
        branches = {"if": condition, "then": references[SCHEMAS[task], "validation"], "else": branches}
    text = json.dumps({**schema, **branches}, indent=1) + "\n"
    return re.sub(r"(?m)(^ *|: )(-?\d+)\.0(,?)$", r"\1\2\3", text)  # 1.0 as 1: versions of pydantic differ


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    write_text(PAGE, page())
    write_text(SCHEMA, json_schema())
    print("wrote docs/reference/config.md and docs/reference/config.schema.json")
