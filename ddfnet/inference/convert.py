"""Official training checkpoints (pickles) to safetensors, which cannot carry code."""

from dataclasses import dataclass
from pathlib import Path

import torch

import ddfnet
from ddfnet.checkpoint import Weights, read_weights, save_safetensors
from ddfnet.models.classifier import build_classifier
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo.download import sha256_of


@dataclass(frozen=True)
class Conversion:
    """What was written: size and sha256 are what a zoo entry of the new file needs.

    Attributes:
        target: the new file.
        kind: `ema` or `model`: which weights of the source.
        tensors: number of parameters and buffers in the file.
        parameters: number of trainable values.
        size, sha256: of the new file.
    """

    target: Path
    kind: str
    tensors: int
    parameters: int
    size: int
    sha256: str


def convert(source: str | Path, target: str | Path, *, model: str) -> Conversion:
    """Writes an official .pth.tar or .pth as a .safetensors file that names its model and preprocessing.

    The moving average of the weights is taken where there is one. The new file is read again and compared bit for bit.

    Args:
        source: a training checkpoint of the official code (timm 0.4.5) or a bare state_dict.
        target: the new file; must end in .safetensors and not exist.
        model: name for `ddfnet.create_model`; the number of classes is that of the file.

    Raises:
        UserError: the paths or the model cannot be used.
        CheckpointError: unreadable or unsafe source, or keys, shapes, types or values that are not those of the model.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise UserError(f"the target must end in .safetensors, got {target}")
    if target.exists():
        raise UserError(f"{target} exists: delete it or name another target")
    found = read_weights(source)
    if source.suffix == ".safetensors" or found.meta is not None:
        raise UserError(f"{source} is no official checkpoint but one of ours: best.safetensors lies beside a best.pt")
    loaded = build_classifier(found, source=source, model=model)
    network = loaded.network
    _check_values(found, network.state_dict(), source)
    meta = {
        "task": "classification",
        "model": {"name": loaded.name, "num_classes": network.num_classes, "kwargs": {}},
        "classes": None,  # the file does not say them: `eval.py` then takes the class folders in sorted order
        "preprocessing": loaded.preprocessing.to_dict(),
        "precision": "fp32",
        "ddfnet": ddfnet.__version__,
        "converted_from": {"file": source.name, "sha256": sha256_of(source), "weights": found.kind},
    }
    kind = "ema" if found.kind == "ema" else "model"
    try:
        save_safetensors(target, found.state_dict, meta, kind=kind)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    _check_written(target, found)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Conversion(target, kind, len(found.state_dict), parameters, target.stat().st_size, sha256_of(target))


def check_weights(path: str | Path, *, model: str) -> int:
    """Loads a file strictly into a model, with the checks of `convert`; returns the number of parameters.

    Raises:
        UserError: see `convert`.
    """
    found = read_weights(path)
    network = build_classifier(found, source=Path(path), model=model).network
    _check_values(found, network.state_dict(), path)
    return sum(parameter.numel() for parameter in network.parameters())


def _check_values(found: Weights, expected: dict[str, torch.Tensor], source: str | Path) -> None:
    """Types and values; keys and shapes were compared when the weights were loaded."""
    types = [
        f"{key} is {tensor.dtype} instead of {expected[key].dtype}"
        for key, tensor in found.state_dict.items()
        if tensor.dtype != expected[key].dtype
    ]
    if types:
        raise CheckpointError(f"{source}: {len(types)} tensors have another type ({types[0]}): save it in that type")


def _check_written(target: Path, found: Weights) -> None:
    written = read_weights(target).state_dict
    same = written.keys() == found.state_dict.keys()
    if not same or not all(torch.equal(written[key], tensor) for key, tensor in found.state_dict.items()):
        raise CheckpointError(f"{target} does not read back as it was written (a failing disk?): delete it")
