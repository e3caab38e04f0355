"""Model cards: what is known of weights, as Markdown. Every figure comes from the entry and the log of its run."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import yaml

from ddfnet.data.decode import CHANNELS
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.models.classifier import Classifier
from ddfnet.utils.markdown import table
from ddfnet.utils.text import plural
from ddfnet.zoo.download import GOOGLE_DRIVE
from ddfnet.zoo.entries import Entry

LAST_EPOCHS = 5
TASK = "image-classification"
_METRICS = {"top1": "top-1", "top5": "top-5"}
Log = Sequence[Mapping[str, Any]]  # records of a `metrics.jsonl`


def way_to_get(entry: Entry) -> str:
    """How the file of an entry comes here: `shipped`, `direct`, `gdown` or `by hand`."""
    if entry.file.shipped:
        return "shipped"
    if not entry.file.urls:
        return "by hand"
    return "gdown" if all(url.split("/")[2] in GOOGLE_DRIVE for url in entry.file.urls) else "direct"


def zoo_card(entry: Entry, *, parameters: int, log: Log = ()) -> str:
    """The page of an entry in docs/reference/models/, from the parameters of its model with its number of classes and
    the log of its run, if any."""
    size = f"{entry.file.size:,} bytes" if entry.file.size is not None else "size not published"
    sha256 = f"`{entry.file.sha256}`" if entry.file.sha256 else "not published"
    get = {
        "shipped": "The file is part of the package: no download, no network.",
        "direct": "The file is downloaded when it is first asked for, and verified each time.",
        "gdown": "The file is downloaded when it is first asked for (`pip install gdown`: it is on Google Drive).",
        "by hand": f"No program can get the file: `python -m ddfnet.zoo info {entry.name}` says what to do.",
    }[way_to_get(entry)]
    command = f"python eval.py --checkpoint zoo:{entry.name} --data FOLDER  # class folders, or val/ with them"
    parts = [
        f"# {entry.name}",
        f"{describe(entry.model)} {parameters:,} parameters, {plural(entry.num_classes, 'class', 'classes')}.",
        f"## Use\n\n{get}",
        _python(entry.name, "  # or ddfnet.create_model"),
        f"```bash\n{command}\n```",
        *_about(entry, log, entry.license, entry.data),
        f"## File\n\n`{entry.file_name}`, {size}, sha256 {sha256}.",
        "This page is made by `python scripts/dev/write_model_zoo.py` from `ddfnet/zoo/entries.py`.",
    ]
    return "\n\n".join(map(str.strip, parts)) + "\n"


def published_card(
    loaded: Classifier,
    name: str,
    *,
    location: str,
    license: str | None,
    data: str | None,
    entry: Entry | None = None,
    log: Log = (),
) -> str:
    """The README.md of a published folder, with the front matter that the Hugging Face hub reads.

    Args:
        loaded: the published weights.
        name: title.
        location: for `timm.create_model`, e.g. `hf-hub:ORG/NAME`.
        license, data: of the weights; None where nobody stated it.
        entry, log: of the zoo, if the weights are from there.
    """
    front: dict[str, Any] = {"license": license_id(license), "library_name": "timm", "pipeline_tag": TASK}
    front["tags"] = [TASK, "timm", "ddfnet", *["multi-label"] * (loaded.threshold is not None)]
    if front["license"] == "other":
        front["license_name"] = license
    classes = loaded.num_classes
    if entry is None:
        place, form = ("FOLDER", f"{classes} class folders")
        if loaded.threshold is not None:
            place, form = "FILE.csv", "a list with the columns image and labels: `a.jpg,cat|dog`"
        command = f"python eval.py --checkpoint model.safetensors --data {place}"
        about = [
            f"## Figures\n\nNone stated. Measure it: `{command}` ({form}).",
            f"## Data\n\n{data or 'Not stated.'}",
            preprocessing_table(loaded.preprocessing),
            f"## License\n\n{license or 'Not stated: ask who published these weights before you use them.'}",
        ]
    else:
        about = _about(entry, log, license, data)
    architecture = loaded.cfg["architecture"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        f"`{architecture}`. {describe(architecture)} {loaded.parameters:,} parameters, "
        f"{plural(classes, 'class', 'classes')}.",
        f"## Use\n\n{_python(location)}",
        _outputs(loaded.threshold),
        *about,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _outputs(threshold: float | None) -> str:
    """How outputs of a multi-label network are read; of others everybody knows."""
    if threshold is None:
        return ""
    return (
        "An image may have any number of these classes: each output stands for itself. The probability of a class is "
        f"the sigmoid of its logit, `model(image).sigmoid()`, and it is predicted from {threshold:g} on."
    )


def license_id(license: str | None) -> str:
    """A license as the hub names it: `mit` for MIT, `unknown` where there is none, `other` for a sentence."""
    if license is None:
        return "unknown"
    return license.lower() if len(license.split()) == 1 else "other"


def describe(model: str) -> str:
    """A model in a sentence: the beginning of its documentation, up to the figures."""
    text = " ".join((timm.model_entrypoint(model).__doc__ or "").split())
    return re.split(r": |\. |\.$", text)[0] + "." if text else ""


def preprocessing_table(how: Preprocessing) -> str:
    """The section on how images are prepared."""
    _, height, width = how.input_size
    tall, wide = math.floor(height / how.crop_pct), math.floor(width / how.crop_pct)
    to = f"{tall}" if tall == wide else f"{tall} x {wide}"
    resize = {
        "center": f"short side to {to} pixels" if tall == wide else f"to cover {to} pixels",
        "squash": f"to {tall} x {wide} pixels, whatever the shape",
        "border": f"long side to {to} pixels" if tall == wide else f"to fit into {to} pixels",
    }[how.crop_mode]
    border = ", the rest in the mean color" if how.crop_mode == "border" else ""
    rows = [
        ("input", f"{height} x {width} pixels, {CHANNELS[len(how.mean)]}"),
        ("resize", f"{resize}, {how.interpolation}"),
        ("crop", f"center (crop_pct {how.crop_pct:g}){border}"),
        ("mean", ", ".join(f"{value:g}" for value in how.mean)),
        ("std", ", ".join(f"{value:g}" for value in how.std)),
    ]
    return f"## Preprocessing\n\n{table(('step', 'value'), rows)}"


def correct(percent: float, images: int) -> int:
    """Number of images behind a percentage."""
    return round(percent * images / 100)


def _python(name: str, note: str = "") -> str:
    return f"""```python
import ddfnet  # registers its models with timm
import timm

model = timm.create_model("{name}", pretrained=True).eval(){note}
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```"""


def _about(entry: Entry, log: Log, license: str | None, data: str | None) -> list[str]:
    return [
        f"## Figures\n\n{_figures(entry)}",
        f"## Data\n\n{data}.",
        f"## Recipe\n\n{_recipe(entry)}",
        *_history(log),
        preprocessing_table(entry.preprocessing),
        f"## Limits\n\n{_limits(entry)}",
        f"## License and origin\n\nLicense: {license}. Origin: {entry.origin}.",
    ]


def _figures(entry: Entry) -> str:
    measured = entry.status == "verified"
    whose, rows = "measured" if measured else "the authors', not measured here", []
    for key, value in entry.metrics.items():
        count = f" ({correct(value, entry.images)} of {entry.images})" if entry.images else ""
        rows.append((_METRICS.get(key, key), f"{value:g} %{count}", whose))
    figures = table(("metric", "value", "whose"), rows)
    if not measured:
        return figures
    on = f"{entry.images} held-out images, " if entry.images else ""
    return f"{figures}\nMeasured with `eval.py`, images prepared as below: {on}{entry.measured}."


def _recipe(entry: Entry) -> str:
    if entry.commit is None:
        return f"Trained with other code ({entry.origin}); the same recipe here: `{entry.config}`."
    return f"`{entry.config}` at commit `{entry.commit}`:\n\n```bash\n{entry.command}\n```"


def _history(log: Log) -> list[str]:
    """The last epochs of a run as a table, if it has any; the training loss is that of each epoch's last record."""
    ends, held_out = ({math.ceil(r["epoch"]): r for r in log if r["kind"] == kind} for kind in ("train", "val"))
    if not ends:
        return []
    rows = []
    for epoch in sorted(ends)[-LAST_EPOCHS:]:
        row, val = ends[epoch], held_out.get(epoch)
        scores = (f"{val['loss']:.4f}", f"{val['top1']:.2f} %") if val else ("-", "-")
        rows.append((str(epoch), f"{row['loss']:.4f}", f"{row['lr']:.2g}", *scores))
    columns = ("epoch", "training loss", "learning rate", "held-out loss", "held-out top-1")
    return [f"The last epochs of {max(ends)} (training loss: the last record of the epoch):", table(columns, rows)]


def _limits(entry: Entry) -> str:
    lines = [entry.note] if entry.note else []
    if entry.status == "claimed":
        lines.append("Nobody has measured these weights with this code yet.")
    if entry.images and "top1" in entry.metrics:
        low, high = _wilson(correct(entry.metrics["top1"], entry.images), entry.images)
        lines.append(
            f"{entry.images} images are a sample: the 95 % interval of the top-1 accuracy (Wilson) is "
            f"{100 * low:.1f} to {100 * high:.1f} %."
        )
    lines.append("The figures hold for the data and the preprocessing above alone.")
    return "\n".join(f"- {line}" for line in lines)


def _wilson(correct: int, images: int) -> tuple[float, float]:
    z = 1.96
    accuracy, spread = correct / images, z * z / images
    center = (accuracy + spread / 2) / (1 + spread)
    half = z * math.sqrt(accuracy * (1 - accuracy) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)
