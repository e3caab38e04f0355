"""An earlier report in the folder that a new one goes to: kept where it was made with other options."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddfnet.utils.files import to_json

EARLIER = "earlier"
# What may differ between two reports of the same thing, besides the results.
_OF_THE_RUN = {"command", "date", "environment", "batch_size", "device", "processes", "images_per_second", "files"}
# What stands among the results, but is given and not measured.
_GIVEN = {"data", "threshold"}


def keep_earlier(folder: Path, name: str, new: dict[str, Any], *, results: Iterable[str] = ()) -> str:
    """Moves the files of an earlier report to `folder/earlier/DATE` if it was made with other options, of another
    checkpoint or on other data; one with the same is left, to be replaced. Returns a line that says so, or nothing.

    Args:
        folder, name: where the new report goes, and which file of it holds its settings.
        new: the content of that file.
        results: keys in it that are results, and no settings.
    """
    try:
        old = json.loads((folder / name).read_text(encoding="utf-8"))
        files = [folder / name, *(folder / file for file in old["files"] if _is_inside(file))]
    except (OSError, ValueError, TypeError, KeyError):  # none, or not of this package
        return ""
    other = _settings(old, results), _settings(to_json(new), results)
    changed = sorted(key for key in {*other[0], *other[1]} if other[0].get(key) != other[1].get(key))
    if not changed:
        return ""
    place = _free(folder / EARLIER / re.sub(r"[^0-9A-Za-z]+", "-", str(old.get("date", "unknown"))[:19]))
    for file in dict.fromkeys(files):
        if file.is_file():
            target = place / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    return f"{folder} had a report that differs in {', '.join(changed)}: it is kept in {place}"


def _settings(report: dict[str, Any], results: Iterable[str]) -> dict[str, Any]:
    """What a report is of, dictionaries in it one level flatter; of several sets their data alone."""
    kept = {key: value for key, value in report.items() if key not in _OF_THE_RUN | ({*results} - _GIVEN)}
    if isinstance(sets := kept.get("sets"), dict):
        kept["sets"] = {name: one.get("data") if isinstance(one, dict) else one for name, one in sets.items()}
    flat: dict[str, Any] = {}
    for key, value in kept.items():
        flat |= {f"{key}.{own}": one for own, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _is_inside(file: Any) -> bool:
    """Whether a name from a report, which anybody may have written, is one of a file below its folder."""
    return isinstance(file, str) and not Path(file).is_absolute() and ".." not in Path(file).parts


def _free(path: Path) -> Path:
    number = 1
    while (candidate := path if number == 1 else path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate
