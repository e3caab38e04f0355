#!/usr/bin/env python
"""Write weights as a folder in the layout of the Hugging Face hub, which timm reads.

  python scripts/publish_weights.py zoo:ddf_mul_resnet14_32px.digits --output published/digits
  python scripts/publish_weights.py runs/x/best.pt --output published/x --license mit --data "our images, 2026"
  python scripts/publish_weights.py runs/x/best.pt --output published/x --push ORG/NAME

The folder holds config.json, model.safetensors and README.md (the model card). After `import ddfnet`,
`timm.create_model("local-dir:FOLDER", pretrained=True)` gives the network back: tried before the folder appears. timm
before 1.0.26 cannot do that for its own models: these are refused there. --push uploads the folder with
huggingface_hub, as the account that is logged in there; a new repository is public, even where no license is stated,
unless --private is given.
Exit codes: 0 done, 1 failed, 2 a mistake in the input.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation

import timm
import torch

import ddfnet
from ddfnet.checkpoint import read_weights, save_safetensors
from ddfnet.inference.cards import license_id, published_card
from ddfnet.models.classifier import Classifier, build_classifier
from ddfnet.models import list_models
from ddfnet.utils.cli import run
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import read_jsonl, write_atomically
from ddfnet.zoo.download import SHIPPED, locate

WEIGHTS = "model.safetensors"
READS_FOLDERS = (1, 0, 26)  # of timm: the first that does not unpickle a model.safetensors of a local-dir


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a classifier: best.pt, .safetensors, official checkpoint, zoo:NAME")
    add("--output", required=True, type=Path, metavar="FOLDER", help="new folder")
    add("--model", metavar="NAME", help="model name, for a file that does not say it")
    add("--weights", choices=("auto", "raw", "ema"), default="auto", help="auto: the moving average if there is one")
    add("--name", metavar="NAME", help="title, MODEL or MODEL.TAG (default: that of the zoo, or the model)")
    add("--license", metavar="ID", help="e.g. mit (default: that of the zoo, or none stated)")
    add("--data", metavar="TEXT", help="what it was trained on (default: what the zoo says, or not stated)")
    add("--push", metavar="ORG/NAME", help="upload the folder there when it is complete; a new one is public")
    add("--private", action="store_true", help="with --push: into a private repository, made if there is none")
    return parser.parse_args(arguments)


def publish(
    checkpoint: str,
    output: Path,
    *,
    model: str | None = None,
    weights: str = "auto",
    name: str | None = None,
    license: str | None = None,
    data: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> Path:
    """Writes the folder, and uploads it if asked to; the arguments are those of the command line.

    Raises:
        UserError: the checkpoint cannot be used, the folder is taken, or the installed timm could not read it.
    """
    _check_free(output)
    if private and not push:
        raise UserError("--private belongs to --push: leave it out, or give --push ORG/NAME")
    upload = _uploader(push, private=private) if push else None
    path, entry = locate(checkpoint)
    found = build_classifier(read_weights(path, prefer=weights), source=path, model=model, entry=entry)
    architecture = found.network.pretrained_cfg["architecture"]
    _check_timm(architecture)
    name = name or (entry.name if entry else architecture)
    license = license or (entry.license if entry else None)
    card = published_card(
        name,
        architecture=architecture,
        parameters=sum(parameter.numel() for parameter in found.network.parameters()),
        preprocessing=found.preprocessing,
        num_classes=found.network.num_classes,
        location=f"hf-hub:{push}" if push else "local-dir:FOLDER",
        license=license,
        data=data,
        entry=entry,
        log=read_jsonl(SHIPPED / f"{entry.name}.metrics.jsonl") if entry and entry.file.shipped else (),
    )
    tag = name.removeprefix(f"{architecture}.") if name.startswith(f"{architecture}.") else None
    _write(output, found, config_for(found, tag=tag, license=license), card)
    print(f"{output}: config.json, {WEIGHTS}, README.md")
    if upload:
        print(upload(output))
    return output


def config_for(found: Classifier, *, tag: str | None, license: str | None) -> dict[str, Any]:
    """The config.json from which timm builds the model and its preprocessing."""
    known, how = found.network.pretrained_cfg, found.preprocessing
    same_size = tuple(known["input_size"][1:]) == (how.size, how.size)
    about = {
        "tag": tag,
        "custom_load": False,
        "input_size": [3, how.size, how.size],
        "fixed_input_size": known.get("fixed_input_size", False),
        "interpolation": how.interpolation,
        "crop_pct": how.crop_pct,
        "crop_mode": "center",
        "mean": how.mean,
        "std": how.std,
        "num_classes": found.network.num_classes,
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
        "license": license_id(license),
        "paper_ids": known.get("paper_ids"),
    }
    config = {
        "architecture": known["architecture"],
        "num_classes": found.network.num_classes,
        "num_features": found.network.num_features,
        "label_names": found.classes,
        "model_args": found.kwargs or None,
        "pretrained_cfg": {key: value for key, value in about.items() if value is not None},
    }
    config["pretrained_cfg"]["pool_size"] = known.get("pool_size") if same_size else None
    return {key: value for key, value in config.items() if value is not None}


def _check_free(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        what = "is not empty" if output.is_dir() else "is a file"
        raise UserError(f"--output {output} {what}: name a new folder")


def _check_timm(architecture: str) -> None:
    """Our own models read such a folder with any timm (`ddfnet.models.pretrained`)."""
    version = tuple(map(int, re.findall(r"\d+", timm.__version__)[:3]))
    if version < READS_FOLDERS and architecture not in list_models():
        wanted = ".".join(map(str, READS_FOLDERS))
        raise UserError(
            f"timm {timm.__version__} cannot read {WEIGHTS} of a local-dir for its own models, as {architecture} is: "
            f'pip install "timm>={wanted},<1.1"'
        )


def _write(output: Path, found: Classifier, config: dict[str, Any], card: str) -> None:
    """Writes beside `output`, tries the result, then gives it its name."""
    meta = {
        "task": "classification",
        "model": {"name": found.name, "num_classes": found.network.num_classes, "kwargs": found.kwargs},
        "classes": found.classes,
        "preprocessing": found.preprocessing.to_dict(),
        "precision": found.precision or "fp32",
        "ddfnet": ddfnet.__version__,
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None
    try:
        folder = scratch / "folder"  # made with the user's umask, which the temporary folder itself is not
        kind = "ema" if found.weights == "ema" else "model"
        # With the meta in its header eval.py needs nothing else; timm passes over it.
        save_safetensors(folder / WEIGHTS, found.network.state_dict(), meta, kind=kind)
        text = json.dumps(config, indent=2) + "\n"
        write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
        write_atomically(folder / "README.md", lambda file: file.write(card.encode()))
        _check_readable(folder, found)
        folder.rename(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_readable(folder: Path, found: Classifier) -> None:
    """What timm makes of the folder must give the same logits, bit for bit."""
    network = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    size = found.preprocessing.size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same = torch.equal(network(image), found.network(image))
    if not same:
        raise RuntimeError("the published folder gives other logits than the checkpoint")


def _uploader(name: str, *, private: bool) -> Callable[[Path], str]:
    """What uploads a folder and returns its address; mistakes show before the work."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push takes ORG/NAME, got {name!r}")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("--push needs huggingface_hub, which is not installed: pip install huggingface_hub") from None

    def upload(folder: Path) -> str:
        try:
            api = HfApi()
            api.create_repo(name, private=private or None, exist_ok=True)  # None: as the account or organization has it
            if private and not api.repo_info(name).private:  # the hub passes over `private` where there is one already
                raise RuntimeError("it exists and is public: make it private there, name another, or drop --private")
            return str(api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Add model"))
        except Exception as error:  # of the hub, of its network library, of a login that is missing
            reason = str(error).strip() or type(error).__name__
            raise UserError(f"{folder} is written, but not uploaded to {name}: {reason}") from None

    return upload


def main(arguments: argparse.Namespace) -> int:
    publish(**vars(arguments))
    return 0


if __name__ == "__main__":
    parsed = parse_arguments()
    run(lambda: main(parsed))
