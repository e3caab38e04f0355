"""Sections of a configuration: strict pydantic models, declared by the components they belong to.

Units stand in the names or descriptions: epochs are passes over the training set, steps are optimizer steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ddfnet.config.reader import KeyPath, flow
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.text import listed

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
# YAML has lists only; strict mode would refuse them for tuples.
Pair = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, `"3"` is not a number, values cannot change after loading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    renamed: ClassVar[dict[str, str]] = {}
    """Keys of earlier versions and what they are called now; the old ones are errors that say so."""
    called_elsewhere: ClassVar[dict[str, str]] = {}
    """What other trainers call keys of this section, and ours (`a.b` in a section of it); the error offers it."""

    def faults(self) -> Iterator["Fault"]:
        """Values that cannot be, or not beside the others, although each has its type and range: all of them."""
        yield from ()

    @model_validator(mode="after")
    def _has_no_faults(self) -> "Section":
        refuse(self.faults())
        return self

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """(key below this section, reason) of keys that do nothing beside the values of the others."""
        yield from ()


class Fault(ConfigError):
    """Values that cannot be, or not beside each other.

    Args:
        values: by key, `section.key`.
        problem: what is wrong with them, and the fix: the rest of the sentence that they begin.
    """

    def __init__(self, values: Mapping[str, Any], problem: str) -> None:
        self.values, self.problem = values, problem
        super().__init__(self.text({}))

    def text(self, origins: Mapping[KeyPath, str]) -> str:
        """The message, with the origin of each value that is not a default."""
        written = [
            f"{key}={_text(value)}" + (f" ({origins[path]})" if (path := _nearest(key, origins)) else "")
            for key, value in self.values.items()
        ]
        return " ".join(filter(None, [listed(written), self.problem]))


class Contradiction(Fault):
    """Two keys of which only one can be set.

    Args:
        values: both, by key, `section.key`.
        off: what switches a key off, where that is not null.
    """

    def __init__(self, values: Mapping[str, Any], off: Mapping[str, Any] | None = None) -> None:
        self.off = off or {}
        super().__init__(values, "")

    def text(self, origins: Mapping[KeyPath, str]) -> str:
        """The message, with the origins; its example keeps the key that was given last."""
        known = list(origins)
        stands = {key: _nearest(key, origins) for key in self.values}
        first = min(self.values, key=lambda key: known.index(path) if (path := stands[key]) else len(known))
        example = f"{first}={flow(self.off.get(first))}"
        return f"{super().text(origins)} contradict: to use one, switch the other off (e.g. {example})"


class Faults(ConfigError):
    """All faults of a section."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(map(str, faults)))


def refuse(faults: Iterable[Fault]) -> None:
    """Raises `Faults` where there are any."""
    if met := list(faults):
        raise Faults(met)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else flow(value)


def _nearest(key: str, origins: Mapping[KeyPath, str]) -> KeyPath | None:
    path = tuple(key.split("."))
    return next((path[:length] for length in range(len(path), 0, -1) if path[:length] in origins), None)


def key_paths(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """All valid key paths with their pydantic field, sections before their members."""
    for name, field in model.model_fields.items():
        yield (*prefix, name), field
        section = section_type(field.annotation)
        if section is not None:
            yield from key_paths(section, (*prefix, name))


def names_elsewhere(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[tuple[str, str]]:
    """All (name in other trainers, key here)."""
    for other, key in getattr(model, "called_elsewhere", {}).items():
        yield other, ".".join((*prefix, key))
    for name, field in model.model_fields.items():
        if (section := section_type(field.annotation)) is not None:
            yield from names_elsewhere(section, (*prefix, name))


def with_present_names(schema: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """A nested dict that an earlier version wrote, its renamed keys as they are called now."""
    present = {}
    for old, value in values.items():
        key = getattr(schema, "renamed", {}).get(old, old)
        inner = section_type(schema.model_fields[key].annotation) if key in schema.model_fields else None
        present[key] = with_present_names(inner, value) if inner is not None and isinstance(value, dict) else value
    return present


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The section class behind an annotation (`EmaConfig | None` -> `EmaConfig`), None for plain values."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
