"""Official training checkpoints (pickles) to safetensors, which cannot carry code."""

from dataclasses import replace
from pathlib import Path

import torch

from ddfnet.checkpoint import Weights, read_weights, save_safetensors
from ddfnet.models.classifier import Classifier, build_classifier
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo.download import sha256_of


def convert(source: str | Path, target: str | Path, *, model: str) -> Classifier:
    """Writes an official .pth.tar or .pth as a .safetensors file that names its model and preprocessing.

    The EMA weights are taken where there are any. The new file is read again and compared bit for bit.
    Returns the classifier in it.

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
    weights = read_weights(source)
    if source.suffix == ".safetensors" or weights.meta is not None:
        raise UserError(f"{source} is one of this package: take the best.safetensors beside its best.pt")
    # It has no class names: `eval.py` then takes the class folders in sorted order.
    loaded = _checked(weights, source, model)
    state = loaded.network.state_dict()  # under the names of the model, whatever the source calls them
    origin = {"file": source.name, "sha256": sha256_of(source), "weights": weights.kind}
    kind = "ema" if weights.kind == "ema" else "model"
    try:
        save_safetensors(target, state, {**loaded.meta(), "converted_from": origin}, kind=kind)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    written = read_weights(target).state_dict
    if written.keys() != state.keys() or not all(torch.equal(written[key], tensor) for key, tensor in state.items()):
        raise CheckpointError(f"{target} does not read back as it was written (a failing disk?): delete it")
    return replace(loaded, weights=kind)


def check_weights(path: str | Path, *, model: str) -> int:
    """Loads a file strictly into a model, with the checks of `convert`; returns the number of parameters."""
    return _checked(read_weights(path), Path(path), model).parameters


def _checked(weights: Weights, source: Path, model: str) -> Classifier:
    """The classifier of weights whose keys, shapes, values and types are those of the model."""
    loaded = build_classifier(weights, source=source, model=model)
    expected = loaded.network.state_dict()
    types = [
        f"{key} is {tensor.dtype} instead of {expected[key].dtype}"
        for key, tensor in weights.state_dict.items()
        if key in expected and tensor.dtype != expected[key].dtype
    ]
    if types:
        raise CheckpointError(f"{source}: {len(types)} tensors have another type ({types[0]}): save it in that type")
    return loaded
