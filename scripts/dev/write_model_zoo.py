#!/usr/bin/env python
"""Writes docs/reference/model_zoo.md and a card per entry of the zoo in docs/models/, from ddfnet/zoo/entries.py.

    python scripts/dev/write_model_zoo.py

Figures come from the entries and the logs that ship with them; parameters are counted. Cards of entries that are gone
are deleted.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation

import torch

from ddfnet.inference.cards import correct, way_to_get, zoo_card
from ddfnet.models import create_model
from ddfnet.utils.files import read_jsonl, write_atomically
from ddfnet.zoo import Entry, entries
from ddfnet.zoo.download import SHIPPED

DOCS = ROOT / "docs"
PAGE, CARDS = "MODEL_ZOO.md", "models"

HEAD = """# Model zoo

Weights for the models of this package. `python -m ddfnet.zoo list` prints the same list, `info NAME` all that is known
of one entry.

"""

TAIL = """
**verified**: measured by us with `eval.py`, on the file of this size and sha256. **claimed**: the figure of its
authors, not measured here. In brackets: number of images.

## How to use them

```python
import ddfnet  # registers its models with timm
import timm

model = timm.create_model("{example}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
finetune = timm.create_model("{example}", pretrained=True, num_classes=4)  # another head
backbone = timm.create_model("{example}", pretrained=True, features_only=True)
```

`ddfnet.create_model` takes the same arguments. To both, the name without its tag means the first weights of that model
in the table; `zoo:` wants the tag where a model has several.

```bash
python eval.py --checkpoint zoo:{example} --data FOLDER
python train.py --config CONFIG model.init_checkpoint=zoo:{example}
python -m ddfnet.zoo download NAME   # now, into $DDFNET_CACHE or torch.hub's folder
python -m ddfnet.zoo verify          # hash and weights of all files that are here
```

| way | what happens |
| --- | --- |
| shipped | the file is part of the package; no network |
| direct | downloaded when first asked for, resumed, verified each time |
| gdown | the same from Google Drive: `pip install gdown` |
| by hand | no program can get it; `python -m ddfnet.zoo info NAME` says where it is and where to save it |

Official checkpoints are pickles. They are read without running code they may carry; `python -m ddfnet.zoo convert`
makes safetensors of them.

## How to add an entry

1. Commit, then train from the clean checkout and score once, after the last epoch:
   `python train.py --config configs/X.yaml eval.every=1000000`. An epoch that was picked on the held-out images is no
   measurement.
2. `python eval.py --checkpoint runs/X/best.safetensors --data FOLDER` gives the metrics, to two digits.
3. Up to 2 MB a file ships: from `runs/X` to `ddfnet/zoo/weights`, `best.safetensors` as `NAME.safetensors`,
   `config.yaml` as `NAME.yaml`, `metrics.jsonl` as `NAME.metrics.jsonl`, where NAME is `model.tag`. A larger file needs
   a server: `File(urls=...)`. `tests/zoo/test_shipped.py` has to know where the held-out images are.
4. Add the entry to `ddfnet/zoo/entries.py`: size (`stat -c %s`), `sha256sum`, command, commit, metrics, number of
   images, with what it was measured, preprocessing. The first entry of a model is what its name alone means.
5. `python -m ddfnet.zoo verify NAME`, then `python scripts/dev/write_model_zoo.py`, then `bash scripts/test.sh tests/zoo`.

For weights of others: status `claimed`, their figures, `commit=None`, their license as they state it.

`python scripts/publish_weights.py zoo:NAME --output FOLDER` writes an entry, or any checkpoint of a classifier, as a
folder in the layout of the Hugging Face hub. `--push ORG/NAME` uploads it, for all to see unless `--private` is given.

This page is made by `python scripts/dev/write_model_zoo.py`.
"""


def pages(known: Sequence[Entry] | None = None) -> dict[str, str]:
    """All pages, by their paths below docs/. `known`: instead of the entries of the zoo."""
    known = entries() if known is None else known
    parameters = {entry.name: count_parameters(entry.model, entry.num_classes) for entry in known}
    rows = [
        "| name | top-1 | top-5 | held-out images | parameters | size | status | license | way |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(entry, parameters[entry.name]) for entry in known),
        "",
    ]
    written = {PAGE: HEAD + "\n".join(rows) + TAIL.format(example=known[0].name)}
    for entry in known:
        log = read_jsonl(SHIPPED / f"{entry.name}.metrics.jsonl") if entry.file.shipped else []
        written[f"{CARDS}/{entry.name}.md"] = zoo_card(entry, parameters=parameters[entry.name], log=log)
    return written


@functools.lru_cache
def count_parameters(model: str, num_classes: int) -> int:
    """Trainable values of a model; takes no memory."""
    with torch.device("meta"):
        network = create_model(model, num_classes=num_classes)
    return sum(parameter.numel() for parameter in network.parameters())


def _row(entry: Entry, parameters: int) -> str:
    def figure(key: str) -> str:
        if key not in entry.metrics:
            return "-"
        count = f" ({correct(entry.metrics[key], entry.images)})" if entry.images else ""
        return f"{entry.metrics[key]:g} %{count}"

    cells = [
        f"[{entry.name}]({CARDS}/{entry.name}.md)",
        figure("top1"),
        figure("top5"),
        f"{entry.images:,}" if entry.images else "not stated",
        f"{parameters:,}",
        f"{entry.file.size / 1e6:.2f} MB" if entry.file.size is not None else "not stated",
        entry.status,
        entry.license,
        way_to_get(entry),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    written = pages()
    for name, text in written.items():
        write_atomically(DOCS / name, lambda file, text=text: file.write(text.encode()))
    for path in (DOCS / CARDS).glob("*.md"):
        if f"{CARDS}/{path.name}" not in written:
            path.unlink()
    print(f"wrote docs/{PAGE} and {len(written) - 1} cards in docs/{CARDS}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
