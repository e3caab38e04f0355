"""Weights as a folder in the layout of the Hugging Face hub, which timm reads; and its upload."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from ddfnet.checkpoint import read_weights, save_safetensors
from ddfnet.inference.cards import license_id, published_card
from ddfnet.models import list_models
from ddfnet.models.classifier import Classifier, build_classifier
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import read_jsonl, scratch_folder, write_json, write_text
from ddfnet.utils.progress import no_progress
from ddfnet.utils.text import wrap
from ddfnet.zoo.download import SHIPPED, locate

WEIGHTS = "model.safetensors"
READS_FOLDERS = (1, 0, 26)  # of timm: the first that does not unpickle a model.safetensors of a local-dir


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
    quiet: bool = False,
) -> Path:
    """Writes config.json, model.safetensors and README.md (the model card), and uploads them if asked to.

    The new folder appears when timm has read it back to the same logits. UserError where the checkpoint cannot be used,
    the folder is taken, or the installed timm could not read it.

    Args:
        checkpoint, model, weights: see `load_classifier`.
        name: title, MODEL or MODEL.TAG; None, as for `license` and `data`: that of the zoo, if any.
        data: what they were trained on.
        push, private: ORG/NAME, the repository of the hub to upload to; a new one is private if asked for.
        quiet: show no progress of the upload, nor of a download.
    """
    with no_progress(quiet):
        return _publish(checkpoint, output, model, weights, name, license, data, push, private)


def _publish(
    checkpoint: str, output: Path, model: str | None, weights: str, name: str | None, license: str | None,
    data: str | None, push: str | None, private: bool,
) -> Path:  # fmt: skip
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        fault = "is not empty" if output.is_dir() else "is a file"
        raise UserError(f"--output {output} {fault}: name a new folder")
    if private and not push:
        raise UserError("--private belongs to --push: leave it out, or give --push ORG/NAME")
    upload = _uploader(push, private=private) if push else None
    path, entry = locate(checkpoint)
    loaded = build_classifier(read_weights(path, prefer=weights), source=path, model=model, entry=entry)
    if loaded.changes:
        print(wrap(f"weights: {loaded.changes}", indent="  "))
    print(loaded.input_text())
    architecture = loaded.cfg["architecture"]
    _check_timm(architecture)
    if entry:
        name, license, data = name or entry.name, license or entry.license, data or entry.data
    name = name or architecture
    card = published_card(
        loaded,
        name,
        location=f"hf-hub:{push}" if push else "local-dir:FOLDER",
        license=license,
        data=data,
        entry=entry,
        log=read_jsonl(SHIPPED / f"{entry.name}.metrics.jsonl") if entry and entry.file.shipped else (),
    )
    tag = name.removeprefix(f"{architecture}.") if name.startswith(f"{architecture}.") else None
    config = config_for(loaded, tag=tag, license=license)
    try:
        with scratch_folder(output) as scratch:
            folder = scratch / "folder"  # made with the user's umask, which the temporary folder itself is not
            kind = "ema" if loaded.weights == "ema" else "model"
            # With the meta in its header eval.py needs nothing else; timm passes over it.
            save_safetensors(folder / WEIGHTS, loaded.network.state_dict(), loaded.meta(), kind=kind)
            write_json(folder / "config.json", config)
            write_text(folder / "README.md", card)
            _check_readable(folder, loaded)
            folder.rename(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None
    print(f"{output}: config.json, {WEIGHTS}, README.md")
    if upload:
        print(upload(output))
    return output


def config_for(loaded: Classifier, *, tag: str | None, license: str | None) -> dict[str, Any]:
    """The config.json from which timm builds the model and its preprocessing."""
    known, how = loaded.cfg, loaded.preprocessing
    about = {
        "tag": tag,
        "custom_load": False,
        "input_size": list(how.input_size),
        "fixed_input_size": known.get("fixed_input_size", False),
        "interpolation": how.interpolation,
        "crop_pct": how.crop_pct,
        "crop_mode": how.crop_mode,
        "mean": how.mean,
        "std": how.std,
        "num_classes": loaded.num_classes,
        "license": license_id(license),
        **{key: known.get(key) for key in ("first_conv", "classifier", "paper_ids")},
    }
    if how.input_size[0] != 3:  # timm would adapt the first convolution, which has its channels already
        about["first_conv"] = None
    about = {key: value for key, value in about.items() if value is not None}
    same_size = tuple(known["input_size"]) == how.input_size
    config = {
        "architecture": known["architecture"],
        "num_classes": loaded.num_classes,
        "num_features": loaded.network.num_features,
        "label_names": loaded.classes,
        "model_args": loaded.kwargs or None,
        "multi_label": None if loaded.threshold is None else {"threshold": loaded.threshold},
        "pretrained_cfg": {**about, "pool_size": known.get("pool_size") if same_size else None},
    }
    return {key: value for key, value in config.items() if value is not None}


def _check_timm(architecture: str) -> None:
    """The models of this package read such a folder with any timm (`ddfnet.models.pretrained`)."""
    version = tuple(map(int, re.findall(r"\d+", timm.__version__)[:3]))
    if version < READS_FOLDERS and architecture not in list_models():
        wanted = ".".join(map(str, READS_FOLDERS))
        raise UserError(
            f"timm {timm.__version__} cannot read {WEIGHTS} of a local-dir for its own models, as {architecture} is: "
            f'pip install "timm>={wanted},<1.1"'
        )


@torch.inference_mode()
def _check_readable(folder: Path, loaded: Classifier) -> None:
    """The network that timm reads from the folder must give the same logits, bit for bit."""
    network = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    image = torch.randn(1, *loaded.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    if not torch.equal(network(image), loaded.network(image)):
        raise RuntimeError("the published folder gives other logits than the checkpoint")


def _uploader(name: str, *, private: bool) -> Callable[[Path], str]:
    """A function that uploads a folder and returns its address; mistakes show before the work."""
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
