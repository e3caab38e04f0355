"""A checked configuration that knows where each value came from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_origin

from ddfnet.config.reader import KeyPath, flow
from ddfnet.config.sections import Section, key_paths

DEFAULT = "default"
C = TypeVar("C", bound=Section)


@dataclass(frozen=True)
class LoadedConfig(Generic[C]):
    """A checked configuration and the origin (`file:line`, `command line`) of each value that is not a default."""

    config: C
    origins: dict[KeyPath, str]
    notes: tuple[str, ...] = ()
    """What its task says of it, a line each."""

    def to_yaml(self, *, with_origins: bool = True) -> str:
        """The resolved configuration as YAML that `--config` reads back, each line with its origin as a comment."""
        free = {path for path, field in key_paths(type(self.config)) if get_origin(field.annotation) is dict}
        return _dump(self.config.model_dump(mode="json"), self.origins if with_origins else None, free)

    def ineffective_keys(self) -> list[str]:
        """One line for each key that somebody wrote, with an effect in mind, and that has none beside the others.

        They are notes and not errors: a recipe inherited from a base may well set what a variant does not need.
        """
        written = {".".join(path): origin for path, origin in self.origins.items()}
        return [
            f"note: {key} ({written[key]}) has no effect: {reason}"
            for key, reason in _without_effect(self.config)
            if key in written
        ]

    def told(self, message: str) -> str:
        """A message that begins with keys, `a.b` or `a.b=VALUE`, with the origins of those that somebody wrote."""
        start, written = 0, {".".join(path): origin for path, origin in self.origins.items()}
        while match := re.compile(r"[a-z_]+(\.[a-z_]+)+").match(message, start):
            start = match.end()
            value: Any = self.config
            for name in match[0].split("."):
                value = getattr(value, name, None)
            texts = [flow(value), str(value), *([f"{value:g}"] if isinstance(value, float) else [])]
            written_value = re.compile("=(" + "|".join(map(re.escape, filter(None, texts))) + ")(?=[ :,;]|$)")
            start = found.end() if (found := written_value.match(message, start)) else start
            parts = (origin for key, origin in written.items() if key.startswith(f"{match[0]}."))  # of a nested dict
            origin = written.get(match[0]) or next(parts, "")
            if origin and not message.startswith("=", start):
                origin = f" ({origin})"
                message, start = message[:start] + origin + message[start:], start + len(origin)
            if not message.startswith(", ", start):
                break
            start += 2
        return message


def _without_effect(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    yield from ((f"{prefix}{key}", reason) for key, reason in section.without_effect())
    for name in type(section).model_fields:
        if isinstance(inner := getattr(section, name), Section):
            yield from _without_effect(inner, f"{prefix}{name}.")


def _dump(values: dict[str, Any], origins: dict[KeyPath, str] | None, free: set[KeyPath]) -> str:
    """YAML of a nested dict, in its own order; with origins, each value carries its origin as a comment."""
    lines: list[str] = []

    def walk(section: dict[str, Any], prefix: KeyPath) -> None:
        for key, value in section.items():
            path = (*prefix, key)
            indent = "  " * len(prefix)
            # An empty dict is a value; a dict below a free-form key (model.kwargs) is written as one, too.
            if isinstance(value, dict) and value and path not in free:
                lines.append(f"{indent}{key}:")
                walk(value, path)
                continue
            text = flow(value)
            comment = f"  # {_origin(path, origins, free)}" if origins is not None else ""
            lines.append(f"{indent}{key}: {text}{comment}")

    walk(values, ())
    return "\n".join(lines) + "\n"


def _origin(path: KeyPath, origins: dict[KeyPath, str], free: set[KeyPath]) -> str:
    # A value inside a flow mapping or an override of a whole section has the origin of the nearest key above it.
    for length in range(len(path), 0, -1):
        if path[:length] in origins and (length == len(path) or path[:length] in free):
            return origins[path[:length]]
    return DEFAULT
